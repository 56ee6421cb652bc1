"""The error kinds. A message says what was found, where, what was expected and what to do."""

import difflib
from collections.abc import Iterable

__all__ = [
    "BudgetError",
    "ConfigError",
    "DataError",
    "JqntError",
    "ModelError",
    "UnsupportedError",
    "nearest",
]


class JqntError(Exception):
    """Anything that jqnt refuses, with one clear line; the command line exits with 2 on it."""


class ModelError(JqntError):
    """A model file or graph that is broken, or that contradicts itself."""


class UnsupportedError(JqntError):
    """A correct model or request that jqnt (or the named target) cannot express."""


class DataError(JqntError):
    """Arrays of the wrong name, shape or type, not finite, or missing."""


class ConfigError(JqntError):
    """An unknown name or an impossible setting: a rule, device, target, metric, option."""


class BudgetError(JqntError):
    """A latency or size budget that no legal plan meets; the message states the minimum."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint to append to a message: the closest known names, or all of a short list."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(repr(c) for c in close)}?"
    if 0 < len(names) <= 12:
        return f"; known: {', '.join(names)}"
    return ""
