"""What the main job yields: the steps that it took, each with its figures and its model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jqnt.encodings import Encodings
from jqnt.graph.ir import Graph
from jqnt.npu.layers import LayerCost
from jqnt.types import Params

__all__ = ["Progress", "Recovery", "Step"]

Progress = Callable[[str, int, int], Any]
"""`progress(what, done, total)` now and then, on long work: what it is, and how far it is."""


@dataclass(frozen=True, eq=False)
class Step:
    """One step: the metric in the float simulation and on integers, and the frozen model.

    Metrics are as `evaluate` gives them (more is better). `metric_integer` is None where nothing
    runs on integers, `latency_s` where the device cannot run these formats. `reference` are the
    float params of this step's graph before rounding, which the layers are compared with;
    `seconds` is what the step took. `detail` says in a line what was chosen.
    """

    name: str
    metric_float_sim: float
    metric_integer: float | None
    latency_s: float | None
    size_bytes: float
    seconds: float
    graph: Graph
    reference: Params
    params: Params
    encodings: Encodings
    layers: tuple[LayerCost, ...] = ()
    detail: str = ""

    @property
    def metric(self) -> float:
        """The metric that counts: on integers, where there are any."""
        return self.metric_float_sim if self.metric_integer is None else self.metric_integer


@dataclass(frozen=True, eq=False)
class Recovery:
    """The steps in order, the first of them the float model, and what was asked of them.

    A step meets the target if its metric is at most `max_drop` below the float model's and its
    latency at most `max_latency_s`.
    """

    steps: tuple[Step, ...]
    max_drop: float
    max_latency_s: float

    def drop(self, step: Step) -> float:
        """How far the step's metric lies below the float model's."""
        return self.steps[0].metric - step.metric

    def fits(self, step: Step) -> bool:
        """Whether the step's latency is known and within the budget."""
        return step.latency_s is not None and step.latency_s <= self.max_latency_s * (1 + 1e-6)

    def meets(self, step: Step) -> bool:
        """Whether both target and budget hold."""
        return self.fits(step) and self.drop(step) <= self.max_drop + 1e-9

    @property
    def chosen(self) -> Step:
        """The first step that meets target and budget; else the best one within the budget;
        else the fastest."""
        for step in self.steps:
            if self.meets(step):
                return step
        if fitting := [step for step in self.steps if self.fits(step)]:
            return max(fitting, key=lambda step: step.metric)
        priced = [step for step in self.steps if step.latency_s is not None]
        return min(priced or self.steps, key=lambda step: step.latency_s or 0.0)
