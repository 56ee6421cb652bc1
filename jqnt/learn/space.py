"""What is searched: a network, its choices, their prices, data, and the compiled loss of it all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, GetAttrKey, KeyPath

from jqnt.affine import rectified_sigmoid
from jqnt.errors import ConfigError, DataError
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.learn.controller import LAGRANGIAN, Controller
from jqnt.learn.divergence import Divergence, output_mse
from jqnt.learn.milp import Coupling
from jqnt.learn.prices import Prices
from jqnt.learn.relaxation import Relaxation, first_bits, relaxed
from jqnt.learn.rows import regularizer
from jqnt.learn.trial import Trial, trial
from jqnt.plan import Options, Plan, Theta
from jqnt.quantizers import SoftRound
from jqnt.types import Params

__all__ = ["Space", "choice_logits", "expected_cost", "space"]


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
    controller: Controller = LAGRANGIAN

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

        Soft rounding is pressed to up or down as in AdaRound. The value is {"params", "theta",
        "bits", "control", "budget", "table", "spread", "unit", "steps"}: all of them leaves, so
        that one program serves every budget, price and start. "bits" is empty unless the
        relaxation is of bits, "control" is the controller's state.
        """
        apply = lower(self.graph)
        plan, divergence, relaxation = self.plan, self.trial.divergence, self.relaxation
        legal, controller = self.legal, self.controller
        couplings = self.prices.couplings
        soft = any(isinstance(q, SoftRound) for q in _quantizers(self.theta))

        def loss(value, batch, *, step, key):
            theta, qparams, temperature = relaxed(
                relaxation, value["theta"], plan, value["bits"], legal,
                temperature=0.05 ** (step / value["steps"]), key=key,
            )  # fmt: skip
            inputs = {name: batch[name] for name in self.graph.inputs}
            outputs = apply(value["params"], qparams, inputs)
            own = divergence(outputs, batch)
            cost = expected_cost(theta, plan, value["table"], temperature, couplings)
            excess = (cost - value["budget"]) / value["spread"]
            total = own / value["unit"] + controller.price(excess, value["control"])
            if soft:
                total = total + _openness(value["theta"], step / value["steps"])
            return total, {"divergence": own, "excess": excess, "worst": excess.max()}

        return loss

    @cached_property
    def project(self) -> Callable[..., dict[str, Any]]:
        """After a step of `fit`: the multipliers follow the excess; no scale turns over."""
        update = self.controller.update

        def project(value: dict[str, Any], aux: dict[str, Any], *, step: Any) -> dict[str, Any]:
            theta = jax.tree_util.tree_map_with_path(_positive, value["theta"])
            return {**value, "theta": theta, "control": update(aux["excess"], value["control"])}

        return project

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
        spread = self.prices.range()[1] - self.prices.range()[0]
        return jax.tree.map(
            lambda x: jnp.asarray(x, jnp.result_type(x)),
            {
                "params": dict(self.params),
                "theta": theta,
                "bits": first_bits(self.relaxation, self.plan),
                "control": self.controller.init(len(budget)),
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
    controller: Controller = LAGRANGIAN,
) -> Space:
    """The search problem of a plan's choices on `batches` (inputs, and labels if `divergence`
    wants them), which are cut anew into batches of `batch_size`. `controller` prices the budgets.

    Raises ConfigError where `theta`, `prices` and the plan do not have the same choices, and
    DataError without data.
    """
    missing = [n for n in plan.choices if not isinstance(theta.get(n), Options)]
    if missing or prices.choices != tuple(plan.choices):
        raise ConfigError(
            f"plan, parameters and prices must have the same choices; calibrate and price this "
            f"plan (first at fault: {missing[0] if missing else prices.choices[:1]!r})"
        )
    batches = list(batches)
    if not batches:
        raise DataError("no batches to search on; at least one is needed")
    if any(batch.keys() != batches[0].keys() for batch in batches):
        raise DataError("the batches do not hold the same arrays")
    samples = {n: np.concatenate([np.asarray(b[n]) for b in batches]) for n in batches[0]}
    count = len(next(iter(samples.values())))
    own = trial(graph, params, plan, divergence)
    found = Space(
        graph, params, plan, theta, prices, own, samples, min(batch_size, count), relaxation,
        controller,
    )  # fmt: skip
    taught = own.targets(params, theta, found.batches)
    samples = {n: np.concatenate([np.asarray(b[n]) for b in taught]) for n in taught[0]}
    return replace(found, samples=samples)


def expected_cost(
    theta: Theta,
    plan: Plan,
    table: Any,
    temperature: Any,
    couplings: Sequence[Coupling] = (),
) -> jax.Array:
    """sum over choices and options of probability * table, and p_first' C p_second for each
    coupling: [kinds]."""
    total = jnp.zeros(table.shape[0])
    chances = []
    for row, name in enumerate(plan.choices):
        logit = theta[name].logit
        p = jax.nn.softmax(logit / temperature)
        chances.append(p)
        total = total + table[:, row, : len(p)] @ p
    for c in couplings:
        p, q = chances[c.first], chances[c.second]
        own = p @ jnp.asarray(c.cost[: len(p), : len(q)], jnp.float32) @ q
        total = total.at[c.constraint].add(own)
    return total


def choice_logits(path: KeyPath, leaf: Any) -> bool:
    """Selects for `fit` what a choice hangs on: value["theta"][choice].logit, value["bits"]."""
    if path[0] == DictKey("bits"):
        return True
    named = len(path) == 3 and isinstance(path[2], GetAttrKey) and path[2].name == "logit"
    return named and path[0] == DictKey("theta")


def _openness(theta: Theta, progress: Any) -> jax.Array:
    """The mean over all softly rounded weights of AdaRound's regularizer."""
    logits = [q.logit for q in _quantizers(theta) if isinstance(q, SoftRound)]
    count = sum(np.size(v) for v in logits)
    total = sum(regularizer(rectified_sigmoid(v), progress) for v in logits)
    return jnp.asarray(total) / count


def _quantizers(theta: Theta) -> list[Any]:
    """Every quantizer in theta, those of choices' branches too."""
    found: list[Any] = []
    for group in theta.values():
        branches = group.branches.values() if isinstance(group, Options) else [(group,)]
        found += [q for own in branches for q in own]
    return found


def _positive(path: KeyPath, leaf: Any) -> Any:
    is_scale = isinstance(path[-1], GetAttrKey) and path[-1].name == "scale"
    return jnp.maximum(leaf, jnp.finfo(jnp.float32).tiny) if is_scale else leaf
