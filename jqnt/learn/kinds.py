"""Kinds of leaves, each with its own optimizer: weights, ranges, rounding, bits."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey, GetAttrKey, KeyPath

from jqnt.errors import ConfigError
from jqnt.learn.trainable import Trainable
from jqnt.ranges import POSITIVE, RANGE_FIELDS

__all__ = ["KINDS", "by_kind", "kind_of", "of_kind", "positive", "sparing_quantizers"]

KINDS = ("weights", "ranges", "rounding", "bits")

_FIELDS = {**dict.fromkeys(RANGE_FIELDS, "ranges"), "logit": "rounding", "bits": "bits"}


def kind_of(path: KeyPath) -> str | None:
    """The kind of a leaf by its path: a weight below "params", else by its field's name.

    Logits are "rounding", those of choices of formats too: a search has a loss of its own. None
    for what no optimizer should touch: zero points, states, anything else.
    """
    keys = [key.key for key in path if isinstance(key, DictKey)]
    fields = [key.name for key in path if isinstance(key, GetAttrKey)]
    if keys and keys[0] == "params":
        return "weights"
    return _FIELDS.get(fields[-1]) if fields else None


def of_kind(*kinds: str, but: Collection[str] = ()) -> Trainable:
    """Selects the leaves of these kinds, for `fit`; `but` names params that stay as they are.

    Raises ConfigError for a kind that does not exist.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"no kind of leaf {kind!r}; there are {', '.join(KINDS)}")

    def trainable(path: KeyPath, leaf: Any) -> bool:
        names = {str(key.key) for key in path if isinstance(key, DictKey)}
        return kind_of(path) in kinds and names.isdisjoint(but)

    return trainable


def by_kind(
    weights: optax.GradientTransformation | None = None,
    ranges: optax.GradientTransformation | None = None,
    rounding: optax.GradientTransformation | None = None,
    bits: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """One optimizer, and schedule, per kind of leaf of {"params", "theta"}.

    A kind without one does not move.
    """
    given = dict(zip(KINDS, (weights, ranges, rounding, bits), strict=True))
    parts = {kind: part or optax.set_to_zero() for kind, part in given.items()}
    return optax.multi_transform({**parts, "none": optax.set_to_zero()}, _labels)


def sparing_quantizers(value: Any) -> Any:
    """The mask for `optax.add_decayed_weights`: weights of rank 2 and more, no quantizer's leaf.

    Biases and normalization's parameters are spared too.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: kind_of(path) == "weights" and getattr(leaf, "ndim", 0) > 1, value
    )


def positive(value: Any, smallest: float = 1e-30) -> Any:
    """`value` with the quantizers' scales, and what else must be positive, at least `smallest`."""

    def kept(path: KeyPath, leaf: Any) -> Any:
        name = path[-1].name if path and isinstance(path[-1], GetAttrKey) else None
        return jnp.maximum(leaf, smallest) if name in POSITIVE else leaf

    return jax.tree_util.tree_map_with_path(kept, value)


def _labels(value: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: kind_of(path) or "none", value)
