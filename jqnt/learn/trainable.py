"""Which leaves of a pytree train: predicates on paths, and the split into two trees."""

import fnmatch
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import DictKey, GetAttrKey, KeyPath, keystr

from jqnt.errors import ConfigError

__all__ = ["Trainable", "everything", "field", "merge", "named", "split"]

Trainable = Callable[[KeyPath, Any], bool]
"""`(path, leaf) -> bool`. Only floating-point leaves can be asked for."""


def everything(path: KeyPath, leaf: Any) -> bool:
    """Every floating-point leaf."""
    return True


def field(*names: str) -> Trainable:
    """The leaves that are a field of one of these names: `field("scale", "logit")`."""
    return lambda path, leaf: any(isinstance(k, GetAttrKey) and k.name in names for k in path)


def named(*patterns: str) -> Trainable:
    """The leaves below a dictionary key that matches one of the glob patterns, at any depth."""

    def trainable(path: KeyPath, leaf: Any) -> bool:
        keys = [str(k.key) for k in path if isinstance(k, DictKey)]
        return any(fnmatch.fnmatchcase(key, pattern) for key in keys for pattern in patterns)

    return trainable


def split(theta: Any, trainable: Trainable) -> tuple[Any, Any]:
    """(train, held): theta's own structure twice, each with None where the other has the leaf.

    Raises ConfigError if no floating-point leaf is selected.
    """

    def selected(path: KeyPath, leaf: Any) -> bool:
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return bool(floating) and trainable(path, leaf)

    mask = jax.tree_util.tree_map_with_path(selected, theta)
    if not any(jax.tree.leaves(mask)):
        paths = [keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(theta)]
        raise ConfigError(
            f"trainable selects none of the {len(paths)} leaves; the first are "
            f"{', '.join(paths[:4]) or 'absent'}"
        )
    train = jax.tree.map(lambda chosen, leaf: leaf if chosen else None, mask, theta)
    held = jax.tree.map(lambda chosen, leaf: None if chosen else leaf, mask, theta)
    return train, held


def merge(train: Any, held: Any) -> Any:
    """The inverse of `split`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, train, held, is_leaf=lambda x: x is None
    )
