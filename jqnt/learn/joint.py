"""Bits, ranges and rounding learned together, in one call."""

import functools
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from jqnt.learn.ledger import Report
from jqnt.learn.rounding import soft_start
from jqnt.learn.search import Found, search
from jqnt.learn.space import Space
from jqnt.learn.together import together
from jqnt.plan import Options, Theta
from jqnt.quantizers import Affine

__all__ = ["joint", "opened"]


def joint(
    space: Space,
    budget: Any,
    *,
    weights: bool = False,
    most_bits: int = 4,
    steps: int = 300,
    progress: Report | None = None,
    key: PRNGKeyArray,
) -> Found:
    """`search` in which the choices' logits, all scales and the rounding of the weights of at
    most `most_bits` bits train in one run (with `weights`, the weights and biases too).

    The plan found comes with the ranges and the roundings that were learned for it. Rounding is
    relaxed as in AdaRound and pressed to up or down during the run; before plans are compared it
    is made hard. Raises BudgetError, with the minimum, if no assignment fits.
    """
    start = opened(space.theta, space, most_bits)
    own = replace(space, theta=start)
    trainable = functools.partial(together, weights=weights)
    return search(own, budget, steps=steps, trainable=trainable, progress=progress, key=key)


def opened(theta: Theta, space: Space, most_bits: int) -> Theta:
    """theta whose choices' weights round softly, starting at the weights themselves, in every
    integer format of at most `most_bits` bits."""
    found = dict(theta)
    for name, choice in space.plan.choices.items():
        group: Options = theta[name]
        branches = dict(group.branches)
        for tensor in choice.tensors:
            if tensor in space.params and space.plan.specs[tensor].role == "weight":
                w = jnp.asarray(space.params[tensor])
                branches[tensor] = tuple(_soft(b, w, most_bits) for b in branches[tensor])
        found[name] = replace(group, branches=branches)
    return found


def _soft(branch: Any, w: Any, most_bits: int) -> Any:
    if not isinstance(branch, Affine) or float(np.max(np.asarray(branch.bits))) > most_bits:
        return branch
    return soft_start(branch, w)
