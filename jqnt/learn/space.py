"""What is searched: a network, its choices, their prices, data, and the compiled loss of it all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, GetAttrKey, KeyPath

from jqnt.errors import ConfigError, DataError
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.learn.divergence import Divergence, output_mse, with_targets
from jqnt.learn.prices import Prices
from jqnt.learn.relax import augmented, raise_multiplier
from jqnt.learn.relaxation import Relaxation, bit_grid, noisy, with_bits
from jqnt.learn.trial import Trial, trial
from jqnt.plan import Options, Plan, Theta, bind
from jqnt.types import Params

__all__ = ["Space", "choice_logits", "expected_cost", "project", "space"]

PENALTY, RATE = 20.0, 2.0
"""rho of the augmented Lagrangian, and the multiplier's step per unit of relative excess."""


@dataclass(frozen=True, eq=False)
class Space:
    """One search problem, made once: budgets, keys and starting points come with each search.

    `samples` are the data as one batch with its targets ("target:" + output name).
    """

    graph: Graph
    params: Params
    plan: Plan
    theta: Theta
    prices: Prices
    trial: Trial
    samples: Mapping[str, Any]
    batch_size: int
    relaxation: Relaxation = "softmax"

    @property
    def batches(self) -> list[dict[str, Any]]:
        """The samples in batches of `batch_size`; what is left over is a batch of its own."""
        count = len(next(iter(self.samples.values())))
        return [
            {name: value[at : at + self.batch_size] for name, value in self.samples.items()}
            for at in range(0, count, self.batch_size)
        ]

    @cached_property
    def loss(self) -> Callable[..., Any]:
        """The Lagrangian that `fit` trains: divergence / unit + price of the expected excess.

        The value is {"params", "theta", "bits", "multiplier", "budget", "table", "spread",
        "unit", "steps"}: all of them leaves, so that one program serves every budget, price and
        start. "bits" is empty unless the relaxation is of bits.
        """
        apply = lower(self.graph)
        plan, divergence, relaxation = self.plan, self.trial.divergence, self.relaxation
        legal = self.legal

        def loss(value, batch, *, step, key):
            theta, temperature = value["theta"], 0.05 ** (step / value["steps"])
            if relaxation == "bits":
                theta, temperature = with_bits(theta, plan, value["bits"], legal), 1.0
            drawn = noisy(theta, key) if relaxation == "gumbel" else theta
            qparams = bind(drawn, plan, temperature)
            inputs = {name: batch[name] for name in self.graph.inputs}
            outputs = apply(value["params"], qparams, inputs)
            own = divergence(outputs, batch)
            cost = expected_cost(theta, plan, value["table"], temperature)
            excess = (cost - value["budget"]) / value["spread"]
            total = own / value["unit"] + augmented(excess, value["multiplier"], PENALTY)
            return total, {"divergence": own, "excess": excess, "worst": excess.max()}

        return loss

    @property
    def legal(self) -> np.ndarray:
        """Which options exist and can run, bool [choices, options]."""
        return np.asarray(np.isfinite(self.prices.table).all(0))

    @cached_property
    def unit(self) -> float:
        """What the loss is measured in: the divergence of the cheapest options less that of the
        dearest."""
        first = np.where(self.legal, self.prices.table[0], np.nan)
        ends = np.stack(
            [self.trial.branches(pick(first, 1)) for pick in (np.nanargmin, np.nanargmax)]
        )
        batch = self.batches[:1]
        worst, best = self.trial.losses(self.params, self.theta, ends, ends[0], batch)
        return max(float(worst - best), 1e-6)

    def value(self, budget: np.ndarray, steps: int) -> dict[str, Any]:
        """What `loss` takes, before the first step; `budget` is less the constants."""
        legal, theta = self.legal, dict(self.theta)
        for row, name in enumerate(self.plan.choices):
            group = theta[name]
            mask = legal[row, : len(group.logit)]
            theta[name] = group.replace(logit=jnp.where(mask, group.logit, -1e9))
        finite = np.where(legal, self.prices.table, 0)
        bits = bit_grid(self.plan) if self.relaxation == "bits" else {}
        spread = self.prices.range()[1] - self.prices.range()[0]
        return jax.tree.map(
            lambda x: jnp.asarray(x, jnp.result_type(x)),
            {
                "params": dict(self.params),
                "theta": theta,
                "bits": {name: grid.mean(0) for name, grid in bits.items()},
                "multiplier": np.zeros(len(budget), np.float32),
                "budget": np.asarray(budget, np.float32),
                "table": finite.astype(np.float32),
                "spread": np.where(spread > 0, spread, 1).astype(np.float32),
                "unit": np.float32(self.unit),
                "steps": np.float32(steps),
            },
        )


def space(
    graph: Graph,
    params: Params,
    plan: Plan,
    theta: Theta,
    prices: Prices,
    batches: Sequence[Mapping[str, Any]],
    *,
    divergence: Divergence = output_mse,
    batch_size: int = 32,
    relaxation: Relaxation = "softmax",
) -> Space:
    """The search problem of a plan's choices on `batches` (inputs, and labels if `divergence`
    wants them), which are cut anew into batches of `batch_size`.

    Raises ConfigError where `theta`, `prices` and the plan do not have the same choices, and
    DataError without data.
    """
    missing = [n for n in plan.choices if not isinstance(theta.get(n), Options)]
    if missing or prices.choices != tuple(plan.choices):
        raise ConfigError(
            f"plan, parameters and prices must have the same choices; calibrate and price this "
            f"plan (first at fault: {missing[0] if missing else prices.choices[:1]!r})"
        )
    targets = with_targets(lower(graph), params, batches)
    names = targets[0].keys()
    if any(batch.keys() != names for batch in targets):
        raise DataError("the batches do not hold the same arrays")
    samples = {name: np.concatenate([np.asarray(b[name]) for b in targets]) for name in names}
    count = len(next(iter(samples.values())))
    own = trial(graph, params, plan, divergence)
    size = min(batch_size, count)
    return Space(graph, params, plan, theta, prices, own, samples, size, relaxation)


def expected_cost(theta: Theta, plan: Plan, table: Any, temperature: Any) -> jax.Array:
    """sum over choices and options of probability * table, [kinds]."""
    total = jnp.zeros(table.shape[0])
    for row, name in enumerate(plan.choices):
        logit = theta[name].logit
        p = jax.nn.softmax(logit / temperature)
        total = total + table[:, row, : len(p)] @ p
    return total


def choice_logits(path: KeyPath, leaf: Any) -> bool:
    """Selects for `fit` what a choice hangs on: value["theta"][choice].logit, value["bits"]."""
    if path[0] == DictKey("bits"):
        return True
    named = len(path) == 3 and isinstance(path[2], GetAttrKey) and path[2].name == "logit"
    return named and path[0] == DictKey("theta")


def project(value: dict[str, Any], aux: dict[str, Any], *, step: Any) -> dict[str, Any]:
    """After a step of `fit`: the multipliers follow the excess."""
    return {**value, "multiplier": raise_multiplier(aux["excess"], value["multiplier"], RATE)}
