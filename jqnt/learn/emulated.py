"""Sensitivities on integers: what a change of one choice does to the network that is deployed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jqnt import integer
from jqnt.errors import DataError
from jqnt.freeze import freeze
from jqnt.graph.ir import Graph
from jqnt.learn.decide import decide_plan, decide_theta
from jqnt.learn.divergence import Divergence, output_mse
from jqnt.learn.trial import Progress
from jqnt.plan import Plan, Theta, bind
from jqnt.types import Params

__all__ = ["integer_losses"]


def integer_losses(
    family: integer.Family,
    params: Params,
    plan: Plan,
    theta: Theta,
    base: Sequence[int] | np.ndarray,
    batches: Sequence[Mapping[str, Any]],
    *,
    divergence: Divergence = output_mse,
    progress: Progress | None = None,
) -> np.ndarray:
    """[choices, options]: the divergence on integers with choice c at option k, all others as in
    `base` (one option per choice); +inf where a choice has no such option.

    As `sensitivity.choice_losses`, but every plan is frozen, biases too, and run by `family`,
    whose programs serve all plans of equal containers. `choice_table` makes it additive.
    `batches` have targets. Raises UnsupportedError where a plan has no integer kernels, and
    DataError without batches.
    """
    if not batches:
        raise DataError("no batches to evaluate on; at least one is needed")
    names = list(plan.choices)
    base = np.asarray(base, int)
    changes = [
        (row, k)
        for row, choice in enumerate(plan.choices.values())
        for k in range(len(choice.options))
        if k != base[row]
    ]
    width = max(len(choice.options) for choice in plan.choices.values())
    found = np.full((len(names), width), np.inf)

    def loss(assignment: np.ndarray) -> float:
        taken = dict(zip(names, assignment.tolist(), strict=True))
        qparams = bind(decide_theta(theta, plan, taken), decide_plan(plan, taken))
        run = family(*freeze(family.graph, params, qparams))
        return _mean(family.graph, run, divergence, batches)

    own = loss(base)
    for row, choice in enumerate(plan.choices.values()):
        found[row, : len(choice.options)] = own
    for done, (row, k) in enumerate(changes, start=1):
        changed = base.copy()
        changed[row] = k
        found[row, k] = loss(changed)
        if progress is not None:
            progress(done, len(changes))
    return found


def _mean(
    graph: Graph, run: Any, divergence: Divergence, batches: Sequence[Mapping[str, Any]]
) -> float:
    total, weight = 0.0, 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        outputs = run({name: batch[name] for name in graph.inputs})
        total, weight = total + size * float(divergence(outputs, batch)), weight + size
    return total / weight
