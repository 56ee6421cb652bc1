"""The true loss of any assignment of branches, by one program: what changes is an index."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.errors import ConfigError, DataError
from jqnt.graph.ir import Graph
from jqnt.learn.divergence import Divergence, output_mse
from jqnt.learn.segments import Segments, segment
from jqnt.plan import Options, Plan, Theta, bind, branch_specs
from jqnt.quantizers import Select
from jqnt.types import Params, QParams

__all__ = ["FLOAT", "Progress", "Trial", "trial"]

FLOAT = -1
"""The branch of a tensor that is not quantized, and the option of a choice that is not."""

Progress = Callable[[int, int], Any]
"""`progress(done, total)` between chunks of candidates."""

_CHUNK = 64


@dataclass(frozen=True, eq=False)
class Trial:
    """The tensors whose branches are chosen, and the compiled loss of a vector of branches.

    `tensors` are those of the plan's choices, choice by choice. An assignment is one option per
    choice, int [choices]; its branches are int [tensors], with FLOAT for none. Quantizers
    outside choices stay on.
    """

    plan: Plan
    segments: Segments
    divergence: Divergence
    tensors: tuple[str, ...]

    @property
    def choices(self) -> tuple[str, ...]:
        """The names of the choices, in order."""
        return tuple(self.plan.choices)

    @cached_property
    def table(self) -> tuple[np.ndarray, ...]:
        """Per choice, int [options, its tensors]: the branch that each option gives to each."""
        found = []
        for choice in self.plan.choices.values():
            menus = [branch_specs(choice, tensor) for tensor in choice.tensors]
            rows = [
                [menu.index(spec) for menu, spec in zip(menus, option, strict=True)]
                for option in choice.options
            ]
            found.append(np.array(rows, np.int32))
        return tuple(found)

    def branches(self, assignment: Sequence[int] | np.ndarray) -> np.ndarray:
        """The branch of each tensor, int [tensors], under one option per choice (or FLOAT)."""
        if len(assignment) != len(self.table):
            raise ConfigError(f"{len(assignment)} options for {len(self.table)} choices")
        parts = [
            np.full(rows.shape[1], FLOAT, np.int32) if k < 0 else rows[int(k)]
            for rows, k in zip(self.table, assignment, strict=True)
        ]
        return np.concatenate(parts)

    @cached_property
    def starts(self) -> np.ndarray:
        """Per tensor, the first segment in which its quantizer acts, int [tensors]."""
        first = self.segments.first
        tied: dict[str, list[str]] = {}
        for name, leader in self.plan.tied.items():
            tied.setdefault(leader, []).append(name)
        return np.array(
            [min(first.get(n, 0) for n in (name, *tied.get(name, ()))) for name in self.tensors]
        )

    def losses(
        self,
        params: Params,
        theta: Theta,
        candidates: np.ndarray,
        base: np.ndarray,
        batches: Sequence[Mapping[str, Any]],
        progress: Progress | None = None,
    ) -> np.ndarray:
        """The mean divergence of each row of branches, float64 [candidates].

        `candidates` is int [candidates, tensors], `base` int [tensors]: the network is run once
        for the base, and for a candidate from where it differs. `batches` have targets.
        """
        params, theta, base = jax.tree.map(jnp.asarray, (dict(params), dict(theta), base))
        candidates = np.asarray(candidates, np.int32).reshape(-1, len(self.tensors))
        differs = candidates != np.asarray(base)
        last = len(self.segments.cuts)
        starts = np.where(differs, self.starts, last).min(1, initial=last)
        total, weight, done = np.zeros(len(candidates)), 0, 0
        for batch in batches:
            arrays = {name: jnp.asarray(value) for name, value in batch.items()}
            size = len(next(iter(batch.values())))
            weight += size
            for at in range(0, len(candidates), _CHUNK):
                rows = candidates[at : at + _CHUNK]
                padded = np.pad(rows, ((0, _CHUNK - len(rows)), (0, 0)))
                begin = np.pad(starts[at : at + _CHUNK], (0, _CHUNK - len(rows)))
                found = self.program(params, theta, base, padded, begin, len(rows), arrays)
                total[at : at + len(rows)] += size * np.asarray(found, np.float64)[: len(rows)]
                done += len(rows)
                if progress is not None:
                    progress(done, len(candidates) * len(batches))
        if not weight:
            raise DataError("no batches to evaluate on; at least one is needed")
        return total / weight

    @cached_property
    def program(self) -> Callable[..., Any]:
        """The compiled losses of up to 64 candidates on one batch."""

        def trial_losses(params, theta, base, candidates, starts, count, batch):
            inputs = {name: batch[name] for name in self.segments.graph.inputs}
            known = self.segments.run(params, self.select(theta, base), inputs)

            def step(i, losses):
                qparams = self.select(theta, candidates[i])
                outputs = self.segments.resume(params, qparams, inputs, known, starts[i])
                return losses.at[i].set(self.divergence(outputs, batch))

            return jax.lax.fori_loop(0, count, step, jnp.zeros(len(candidates)))

        return jax.jit(trial_losses)

    def select(self, theta: Theta, branches: Any) -> QParams:
        """One quantizer per tensor: what `bind` gives, with each choice's tensors on the branch
        that `branches`, int [tensors], names; a bias on a grid only with a grid on both sides."""
        fixed = {name: q for name, q in theta.items() if not isinstance(q, Options)}
        qparams = dict(bind(fixed, self.plan.replace(choices={})))
        at = 0
        for name, choice in self.plan.choices.items():
            for tensor in choice.tensors:
                qparams[tensor] = Select(branches[at], theta[name].branches[tensor])
                at += 1
        for tensor, leader in self.plan.tied.items():
            if leader in qparams:
                qparams[tensor] = qparams[leader]
        return qparams


def trial(graph: Graph, params: Params, plan: Plan, divergence: Divergence = output_mse) -> Trial:
    """The trial of a plan's choices; ConfigError if it has none."""
    if not plan.choices:
        raise ConfigError("the plan has no choices: nothing to search")
    tensors = tuple(t for choice in plan.choices.values() for t in choice.tensors)
    acting = {*tensors, *plan.tied}
    return Trial(plan, segment(graph, params, acting), divergence, tensors)
