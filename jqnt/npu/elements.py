"""Which effects the cost model counts: each can be switched off, to see what it contributes."""

from dataclasses import dataclass

__all__ = ["ALL", "PLAN", "ROOFLINE", "Elements"]


@dataclass(frozen=True)
class Elements:
    """One switch per effect.

    - granules: dimensions of products are padded to multiples
    - engines: elementwise work, reductions and data movement have rates of their own; without,
      everything runs at the rate of products
    - streaming: operands of products pass through the on-chip memory at its bandwidth
    - tiling: tensors beyond the on-chip memory are cut; weights or inputs are fetched again
    - residency: activations that fit stay on chip; without, each is written and read back
    - prefetch: weights of a group load while the group before computes
    - fusion: what the device fuses behind an operator is free
    - utilization: the array waits for its tiles of weights, the longer the fewer the pixels
    - serial: results of one pixel wait for the whole pipeline
    - conversions: tensors between groups of different activation formats are converted; a cost of
      pairs of groups, which tables of single groups do not hold, so it is off unless asked for
    - transposes: channels-first inputs and outputs of the graph are transposed
    - fallback: operators that the device lacks run on the CPU, with crossings
    - overheads: dispatch per group, a constant per graph
    """

    granules: bool = True
    engines: bool = True
    streaming: bool = True
    tiling: bool = True
    residency: bool = True
    prefetch: bool = True
    fusion: bool = True
    utilization: bool = True
    serial: bool = True
    conversions: bool = False
    transposes: bool = True
    fallback: bool = True
    overheads: bool = True


ALL = Elements()
"""The full model of groups, as tables and searches price them."""

PLAN = Elements(conversions=True)
"""The full model of a decided plan: with the conversions between its groups."""

ROOFLINE = Elements(
    granules=False,
    engines=False,
    streaming=False,
    tiling=False,
    prefetch=False,
    utilization=False,
    serial=False,
    transposes=False,
    fallback=False,
    overheads=False,
)
"""max(operations / rate, weights / bandwidth), nothing else: a lower bound of the full model."""
