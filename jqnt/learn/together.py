"""What trains when bits are learned with ranges, rounding and weights, and at which rates."""

import functools
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey, GetAttrKey, KeyPath

from jqnt.learn.rounding import SURE
from jqnt.learn.space import choice_logits
from jqnt.plan import Theta
from jqnt.quantizers import SoftRound

__all__ = ["hardened", "rates", "together"]


def together(path: KeyPath, leaf: Any, *, weights: bool = False) -> bool:
    """Selects for `fit` choice logits or bits, scales, rounding logits, and params if asked."""
    if choice_logits(path, leaf):
        return True
    if path[0] == DictKey("params"):
        return weights
    last = path[-1]
    named = isinstance(last, GetAttrKey) and last.name in ("scale", "logit")
    return path[0] == DictKey("theta") and named


@functools.cache
def rates(steps: int) -> optax.GradientTransformation:
    """Adam: 0.1 on choice logits and bits, 0.02 on rounding logits; on scales (3e-3) and params
    (1e-3) in units of each tensor's size, along a cosine."""

    def relative(rate: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(),
            optax.scale_by_param_block_rms(),
            optax.scale_by_learning_rate(optax.cosine_decay_schedule(rate, max(steps, 1), 0.01)),
        )

    kinds: dict[Hashable, optax.GradientTransformation] = {
        "choice": optax.adam(0.1),
        "rounding": optax.adam(0.02),
        "scale": relative(3e-3),
        "params": relative(1e-3),
    }
    return optax.multi_transform(kinds, _kinds)


def hardened(theta: Theta) -> Theta:
    """Every soft rounding decided, up or down."""
    return jax.tree.map(
        lambda q: (
            replace(q, logit=jnp.where(q.logit >= 0, SURE, -SURE))
            if isinstance(q, SoftRound)
            else q
        ),
        theta,
        is_leaf=lambda q: isinstance(q, SoftRound),
    )


def _kinds(value: Any) -> Any:
    def kind(path: KeyPath, leaf: Any) -> str:
        if choice_logits(path, leaf):
            return "choice"
        if path[0] == DictKey("params"):
            return "params"
        last = path[-1]
        rounding = isinstance(last, GetAttrKey) and last.name == "logit"
        return "rounding" if rounding else "scale"

    return jax.tree_util.tree_map_with_path(kind, value)
