"""What quantizing costs, one tensor or one choice at a time: additive tables for allocation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jqnt.learn.trial import FLOAT, Progress, Trial
from jqnt.plan import Theta, branch_specs
from jqnt.types import Params

__all__ = ["choice_losses", "choice_table", "tensor_losses", "tensor_table"]

Batches = Sequence[Mapping[str, Any]]


def tensor_losses(
    trial: Trial,
    params: Params,
    theta: Theta,
    batches: Batches,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Per tensor of a choice, the divergence with it alone quantized: float64 [branches].

    The branches are the distinct formats that the options give to the tensor, in their order.
    One program serves all tensors and formats.
    """
    counts = [
        len(branch_specs(choice, tensor))
        for choice in trial.plan.choices.values()
        for tensor in choice.tensors
    ]
    where = np.repeat(np.arange(len(counts)), counts)
    candidates = np.full((len(where), len(counts)), FLOAT, np.int32)
    candidates[np.arange(len(where)), where] = np.concatenate([np.arange(c) for c in counts])
    base = np.full(len(counts), FLOAT, np.int32)
    losses = trial.losses(params, theta, candidates, base, batches, progress)
    parts = np.split(losses, np.cumsum(counts)[:-1])
    return dict(zip(trial.tensors, parts, strict=True))


def tensor_table(trial: Trial, losses: Mapping[str, np.ndarray]) -> np.ndarray:
    """[choices, options]: the sum of `tensor_losses` over the choice's tensors; +inf elsewhere."""
    found = _empty(trial)
    for row, (choice, branches) in enumerate(
        zip(trial.plan.choices.values(), trial.table, strict=True)
    ):
        columns = [losses[t][branches[:, i]] for i, t in enumerate(choice.tensors)]
        found[row, : len(branches)] = np.sum(columns, axis=0)
    return found


def choice_losses(
    trial: Trial,
    params: Params,
    theta: Theta,
    base: Sequence[int] | np.ndarray,
    batches: Batches,
    progress: Progress | None = None,
) -> np.ndarray:
    """[choices, options]: the divergence with choice c at option k and all others as in `base`.

    `base` has one option per choice (FLOAT for a choice that is not quantized). The entries at
    `base` itself are its own divergence; +inf where a choice has no such option.
    """
    base = np.asarray(base, int)
    own = trial.branches(base)
    places, candidates = [], [own]
    for row, branches in enumerate(trial.table):
        for k in range(len(branches)):
            if k != base[row]:
                changed = base.copy()
                changed[row] = k
                places.append((row, k))
                candidates.append(trial.branches(changed))
    losses = trial.losses(params, theta, np.stack(candidates), own, batches, progress)
    found = _empty(trial)
    for row, branches in enumerate(trial.table):
        found[row, : len(branches)] = losses[0]
    for (row, k), value in zip(places, losses[1:], strict=True):
        found[row, k] = value
    return found


def choice_table(losses: np.ndarray, base: Sequence[int] | np.ndarray) -> np.ndarray:
    """`choice_losses` as an additive table: what each option adds to the base's divergence, with
    that divergence spread evenly over the choices, so that sums of entries are divergences."""
    own = float(losses[0, int(base[0])])
    return losses - own + own / len(losses)


def _empty(trial: Trial) -> np.ndarray:
    return np.full((len(trial.table), max(len(rows) for rows in trial.table)), np.inf)
