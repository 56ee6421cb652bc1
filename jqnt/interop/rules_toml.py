"""Rules and plans as TOML: what `--rules` reads, and what a search writes."""

import glob
import tomllib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jqnt.errors import ConfigError, nearest
from jqnt.granularity import Granularity
from jqnt.plan import Plan
from jqnt.rules import Rule

__all__ = ["load_rules", "plan_rules", "rules_text"]


def load_rules(path: Path) -> tuple[Rule, ...]:
    """The [[rule]] tables of a TOML file, with the fields of `Rule`; ConfigError, naming the
    file and the rule, for anything else."""
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"rules {str(path)!r} cannot be read: {error}") from None
    for key in document:
        if key != "rule":
            raise ConfigError(f"{path}: unknown table {key!r}; expected [[rule]]")
    known = [field.name for field in fields(Rule)]
    found = []
    for number, table in enumerate(document.get("rule", ()), start=1):
        for key in table:
            if key not in known:
                raise ConfigError(f"{path}, rule {number}: unknown {key!r}{nearest(key, known)}")
        values: dict[str, Any] = {k: _value(v, f"{path}, rule {number}") for k, v in table.items()}
        found.append(Rule(**values))
    if not found:
        raise ConfigError(f"{path}: holds no [[rule]]")
    return tuple(found)


def plan_rules(plan: Plan) -> tuple[Rule, ...]:
    """Rules that give every weight and activation of a decided plan its format, by role and
    format: placing the same graph for the same target under them gives the plan again."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, spec in plan.specs.items():
        if spec.role in ("weight", "activation"):
            names.setdefault((spec.role, spec.format.name), []).append(glob.escape(name))
    return tuple(
        Rule(name=tuple(own), role=role, format=fmt)  # pyright: ignore[reportArgumentType]
        for (role, fmt), own in names.items()
    )


def rules_text(rules: Sequence[Rule]) -> str:
    """The rules as [[rule]] tables that `load_rules` reads back; they name patterns, a role and
    a format."""
    tables = []
    for rule in rules:
        patterns = (rule.name,) if isinstance(rule.name, str) else rule.name
        lines = ["[[rule]]", f"role = {_quoted(rule.role)}" if rule.role else ""]
        if rule.number_format is not None:
            lines.append(f"format = {_quoted(rule.number_format.name)}")
        lines += ["name = [", *(f"  {_quoted(pattern)}," for pattern in patterns), "]"]
        tables.append("\n".join(line for line in lines if line))
    return "\n\n".join(tables) + "\n"


def _value(value: Any, where: str) -> Any:
    """Lists become tuples; a table of axis and block is a `Granularity`."""
    if isinstance(value, list):
        return tuple(_value(v, where) for v in value)
    if not isinstance(value, dict):
        return value
    for key in value:
        if key not in ("axis", "block"):
            raise ConfigError(f"{where}: a granularity has axis and block, not {key!r}")
    return Granularity(**{k: _value(v, where) for k, v in value.items()})


def _quoted(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'
