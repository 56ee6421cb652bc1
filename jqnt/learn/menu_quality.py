"""What each format of a menu does to its own tensor: SQNR and cosine, before any network."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.errors import ConfigError, DataError
from jqnt.learn.quality import Quality, quality_of, signal_sums
from jqnt.plan import Plan, Theta
from jqnt.quantizers import Select
from jqnt.types import Apply, Params

__all__ = ["menu_quality", "quality_table"]


def menu_quality(
    apply: Apply,
    params: Params,
    plan: Plan,
    theta: Theta,
    batches: Iterable[Mapping[str, Any]],
) -> dict[str, tuple[Quality, ...]]:
    """Per tensor of a choice, the SQNR and the cosine of each of its branches against the float
    values, weights and activations alike, over all samples; batches are streamed.

    One program, one pass over the float network, serves all tensors and formats. Raises
    ConfigError if the plan has no choices, DataError for no batches.
    """
    if not plan.choices:
        raise ConfigError("the plan has no choices: nothing to compare")
    branches = {
        tensor: theta[name].branches[tensor]
        for name, choice in plan.choices.items()
        for tensor in choice.tensors
    }
    held = tuple(name for name in branches if plan.specs[name].role == "weight")
    moving = tuple(name for name in branches if name not in held)

    @partial(jax.jit, static_argnames=("want",))
    def sums(params: Params, branches: Any, inputs: Any, want: tuple[str, ...]) -> Any:
        made = apply(params, {}, inputs, want=tuple(n for n in want if n not in params))
        values = {**params, **made}
        return {n: _each(jnp.asarray(values[n]), branches[n]) for n in want}

    total: Any = None
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        own = sums(params, branches, inputs, (*moving, *held) if total is None else moving)
        own = jax.tree.map(lambda x: np.asarray(x, np.float64), own)
        total = own if total is None else total | {n: total[n] + own[n] for n in moving}
    if total is None:
        raise DataError("no batches to compare on; at least one is needed")
    return {name: tuple(quality_of(*map(float, row)) for row in total[name]) for name in branches}


def quality_table(
    plan: Plan, quality: Mapping[str, tuple[Quality, ...]], branches: tuple[np.ndarray, ...]
) -> np.ndarray:
    """[choices, options]: the sum over the choice's tensors of noise / signal, 10^(-SQNR / 10);
    +inf where there is no such option. `branches` is `Trial.table`."""
    width = max(len(rows) for rows in branches)
    found = np.full((len(branches), width), np.inf)
    for row, (choice, own) in enumerate(zip(plan.choices.values(), branches, strict=True)):
        noise = [np.array([10 ** (-q.sqnr_db / 10) for q in quality[t]]) for t in choice.tensors]
        found[row, : len(own)] = sum(n[own[:, i]] for i, n in enumerate(noise))
    return found


def _each(x: Any, branches: tuple[Any, ...]) -> Any:
    """[branches, 4]: one branch after the other, by one body."""

    def one(k: Any) -> Any:
        return jnp.stack(signal_sums(x, Select(k, branches)(x)))

    return jax.lax.map(one, jnp.arange(len(branches)))
