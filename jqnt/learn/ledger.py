"""The true losses known so far of one network's assignments, and what still must be run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jqnt.learn.sensitivity import choice_table, tensor_losses, tensor_table
from jqnt.learn.space import Space
from jqnt.plan import Theta
from jqnt.types import Params

__all__ = ["Ledger", "Report"]

Report = Callable[[str, int, int], Any]
"""`report(what, done, total)` on long work."""


@dataclass(frozen=True, eq=False)
class Ledger:
    """Losses by assignment (a tuple of options) at fixed parameters; `known` fills up with use.

    One ledger serves any number of budgets, so that what was run once is not run again.
    """

    space: Space
    params: Params
    theta: Theta
    known: dict[tuple[int, ...], float] = field(default_factory=dict)
    alone: dict[str, np.ndarray] = field(default_factory=dict)

    def run(self, assignments: Sequence[np.ndarray], report: Report) -> None:
        """Makes sure that the losses of all these are known."""
        new = list(dict.fromkeys(tuple(np.asarray(a).tolist()) for a in assignments))
        new = [a for a in new if a not in self.known]
        if not new:
            return
        trial = self.space.trial
        rows = np.stack([trial.branches(a) for a in new])
        # the base need not be one of them: what most agree on saves most
        base = np.array([np.bincount(column).argmax() for column in np.array(new).T])
        losses = trial.losses(
            self.params,
            self.theta,
            rows,
            trial.branches(base),
            self.space.batches,
            lambda done, total: report("candidates", done, total),
        )
        self.known.update(zip(new, losses.tolist(), strict=True))

    def sensitivities(self, report: Report) -> np.ndarray:
        """[choices, options]: the sum of what each tensor alone does to the float network."""
        if not self.alone:
            self.alone.update(
                tensor_losses(
                    self.space.trial,
                    self.params,
                    self.theta,
                    self.space.batches,
                    lambda done, total: report("sensitivities", done, total),
                )
            )
        return tensor_table(self.space.trial, self.alone)

    def around(self, base: np.ndarray, report: Report) -> np.ndarray:
        """[choices, options]: additive losses that are exact for the base and for each single
        change of it."""
        changes = []
        for row, branches in enumerate(self.space.trial.table):
            for k in range(len(branches)):
                changed = base.copy()
                changed[row] = k
                changes.append((row, k, changed))
        self.run([base, *(changed for *_, changed in changes)], report)
        losses = np.full(self.space.prices.table.shape[1:], np.inf)
        for row, k, changed in changes:
            losses[row, k] = self.known[tuple(changed.tolist())]
        return choice_table(losses, base)
