"""Protocol buffers in text: messages as lists of (field, value), written and read.

https://protobuf.dev/reference/protobuf/textformat-spec. Values are numbers, strings, booleans,
words (enumerations) or messages; repeated fields appear several times, or as [a, b].
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jqnt.errors import DataError

__all__ = ["Message", "Word", "dump", "parse"]

Message = list[tuple[str, Any]]
"""(field, value) in order; a message is such a list again."""


class Word(NamedTuple):
    """The name of an enumeration's value."""

    name: str


_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<mark>[{}<>\[\]:,;])"""
    r"""|(?P<word>[-+]?[\w.]+(?:[eE][-+]?\d+)?)"""
)


def dump(message: Sequence[tuple[str, Any]], indent: int = 0) -> str:
    """The text of a message, one field a line."""
    space, lines = "  " * indent, []
    for name, value in message:
        if isinstance(value, list):
            lines.append(f"{space}{name} {{\n{dump(value, indent + 1)}{space}}}\n")
        else:
            lines.append(f"{space}{name}: {_text(value)}\n")
    return "".join(lines)


def parse(text: str, where: str) -> Message:
    """The message of a text; DataError, naming the line, where it is none."""
    tokens = _Tokens(text, where)
    message = list(_fields(tokens, ""))
    return message


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word):
        return value.name
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    return str(value) if isinstance(value, int) else f"{float(value):.9g}"


class _Tokens:
    """The tokens of a text, with one to look ahead."""

    def __init__(self, text: str, where: str):
        self.text, self.where, self.place = text, where, 0
        self.ahead = self._next()

    def take(self) -> tuple[str, str]:
        """(kind, token); kind "" at the end."""
        token, self.ahead = self.ahead, self._next()
        return token

    def fail(self, what: str) -> DataError:
        """The error at this place."""
        line = self.text.count("\n", 0, self.place) + 1
        return DataError(f"{self.where}, line {line}: {what}")

    def _next(self) -> tuple[str, str]:
        while self.place < len(self.text):
            found = _TOKEN.match(self.text, self.place)
            if found is None:
                raise self.fail(f"{self.text[self.place]!r} is no protobuf text")
            self.place = found.end()
            if found.lastgroup is not None:
                return found.lastgroup, found.group()
        return "", ""


def _fields(tokens: _Tokens, end: str) -> Iterator[tuple[str, Any]]:
    while True:
        kind, name = tokens.take()
        if (kind, name) == ("mark", end) or (not kind and not end):
            return
        if kind == "mark" and name in ",;":
            continue
        if kind != "word":
            raise tokens.fail(f"a field is needed, not {name!r}" if kind else "it ends early")
        colon = tokens.ahead == ("mark", ":")
        if colon:
            tokens.take()
        kind, value = tokens.take()
        if (kind, value) in (("mark", "{"), ("mark", "<")):
            yield name, list(_fields(tokens, "}" if value == "{" else ">"))
        elif not colon:
            raise tokens.fail(f"field {name!r} has no value")
        elif (kind, value) == ("mark", "["):
            while tokens.ahead != ("mark", "]"):
                if tokens.ahead == ("mark", ","):
                    tokens.take()
                yield name, _scalar(tokens, *tokens.take())
            tokens.take()
        else:
            yield name, _scalar(tokens, kind, value)


def _scalar(tokens: _Tokens, kind: str, text: str) -> Any:
    if kind == "string":
        return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), text[1:-1])
    if kind != "word":
        raise tokens.fail(f"a value is needed, not {text!r}" if text else "it ends early")
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return Word(text)
