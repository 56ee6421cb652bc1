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
from jqnt.learn.menu import Menu, menu
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
_KEPT = -1


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
        last = len(self.segments.cuts)
        candidates = np.asarray(candidates, np.int32).reshape(-1, len(self.tensors))
        starts = np.where(candidates != base, self.starts, last).min(1, initial=last)
        # the base comes first, and from before the first segment on: what it gives is kept
        rows = np.concatenate([np.asarray(base, np.int32)[None], candidates])
        starts = np.concatenate([[_KEPT], starts]).astype(np.int32)
        options = self._menu(theta)
        params, kinds = jax.device_put((dict(params), options.kinds))
        total, weight, done = np.zeros(len(rows)), 0, 0
        for batch in batches:
            arrays = jax.device_put(dict(batch))
            size = len(next(iter(batch.values())))
            known, weight = self._unknown(params, arrays), weight + size
            for at in range(0, len(rows), _CHUNK):
                chunk = options.rows(_padded(self._whole(rows[at : at + _CHUNK], options)))
                count, begin = len(rows[at : at + _CHUNK]), _padded(starts[at : at + _CHUNK])
                found, known = self.program(params, kinds, chunk, begin, count, known, arrays)
                total[at : at + count] += size * np.asarray(found, np.float64)[:count]
                done += count
                if progress is not None:
                    progress(done, len(rows) * len(batches))
        if not weight:
            raise DataError("no batches to evaluate on; at least one is needed")
        return total[1:] / weight

    def targets(
        self, params: Params, theta: Theta, batches: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """The batches with the float network's outputs beside them, as `with_targets` does it, by
        the program that will try the candidates."""
        options = self._menu(theta)
        params, kinds = jax.device_put((dict(params), options.kinds))
        none = options.rows(np.full((_CHUNK, len(options.kinds.tensors)), FLOAT, np.int32))
        begin = np.full(_CHUNK, _KEPT, np.int32)
        found = []
        for batch in batches:
            arrays = jax.device_put(dict(batch))
            known = self._unknown(params, arrays)
            empty = {f"target:{name}": value for name, value in known[-1].items()}
            *_, outputs = self.program(params, kinds, none, begin, 1, known, {**arrays, **empty})[1]
            found.append({**batch, **{f"target:{name}": y for name, y in outputs.items()}})
        return found

    def _menu(self, theta: Theta) -> Menu:
        """The branches of the tensors of choices, then the quantizers outside choices, one each."""
        choices = self.plan.choices.items()
        chosen = {t: theta[name].branches[t] for name, own in choices for t in own.tensors}
        fixed = {name: q for name, q in theta.items() if not isinstance(q, Options)}
        bound = bind(fixed, self.plan.replace(choices={}))
        return menu(chosen | {name: (q,) for name, q in bound.items() if name not in chosen})

    def _whole(self, rows: np.ndarray, options: Menu) -> np.ndarray:
        """Rows of branches with those outside choices, which stay on."""
        return np.pad(rows, ((0, 0), (0, len(options.kinds.tensors) - rows.shape[1])))

    def _unknown(self, params: Params, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        """Zeros in place of the values at the cuts and of the outputs."""
        inputs = {name: batch[name] for name in self.segments.graph.inputs}
        key = tuple((name, value.shape) for name, value in inputs.items())
        if key not in self._shapes:
            self._shapes[key] = jax.eval_shape(
                lambda p, x: self.segments.kept(self.segments.run(p, {}, x)), params, inputs
            )
        return jax.device_put(jax.tree.map(lambda v: np.zeros(v.shape, v.dtype), self._shapes[key]))

    @cached_property
    def _shapes(self) -> dict[Any, tuple[Any, ...]]:
        return {}

    @cached_property
    def program(self) -> Callable[..., Any]:
        """The compiled losses of up to 64 candidates on one batch; and the values at the cuts and
        the outputs under the last of them that starts before the first segment (else what was
        known).

        The network is in it once: the base is a candidate like others.
        """

        def trial_losses(params, kinds, rows, starts, count, known, batch):
            inputs = {name: batch[name] for name in self.segments.graph.inputs}

            def step(i, carry):
                losses, known = carry
                row = jax.tree.map(lambda values: values[i], rows)
                qparams = self._with_tied(kinds.quantizers(row))
                values = self.segments.resume(params, qparams, inputs, known, starts[i])
                known = jax.lax.cond(
                    starts[i] < 0, lambda: self.segments.kept(values), lambda: known
                )
                return losses.at[i].set(self.divergence(values[-1], batch)), known

            return jax.lax.fori_loop(0, count, step, (jnp.zeros(len(starts)), known))

        return jax.jit(trial_losses)

    def select(self, theta: Theta, branches: Any) -> QParams:
        """One quantizer per tensor: what `bind` gives, with each choice's tensors on the branch
        that `branches`, int [tensors], names; a bias on a grid only with a grid on both sides."""
        fixed = {name: q for name, q in theta.items() if not isinstance(q, Options)}
        qparams = dict(bind(fixed, self.plan.replace(choices={})))
        owners = [name for name, choice in self.plan.choices.items() for _ in choice.tensors]
        for at, (owner, tensor) in enumerate(zip(owners, self.tensors, strict=True)):
            qparams[tensor] = Select(branches[at], theta[owner].branches[tensor])
        return self._with_tied(qparams)

    def _with_tied(self, qparams: QParams) -> QParams:
        tied = self.plan.tied.items()
        return {**qparams, **{t: qparams[leader] for t, leader in tied if leader in qparams}}


def _padded(rows: np.ndarray) -> np.ndarray:
    """Zeros after the rows, up to the number that the program takes."""
    return np.pad(rows, [(0, _CHUNK - len(rows)), *[(0, 0)] * (rows.ndim - 1)])


def trial(graph: Graph, params: Params, plan: Plan, divergence: Divergence = output_mse) -> Trial:
    """The trial of a plan's choices; ConfigError if it has none."""
    if not plan.choices:
        raise ConfigError("the plan has no choices: nothing to search")
    tensors = tuple(t for choice in plan.choices.values() for t in choice.tensors)
    acting = {*tensors, *plan.tied}
    return Trial(plan, segment(graph, params, acting), divergence, tensors)
