"""Along which axis the blocks of a tensor lie, and which grid their scales have: rules read."""

from collections.abc import Sequence
from dataclasses import replace

from jqnt.errors import ConfigError
from jqnt.formats import Microscaling
from jqnt.granularity import Granularity
from jqnt.graph.ir import Graph
from jqnt.graph.roles import summed_axis
from jqnt.plan import Spec
from jqnt.rules import Rule
from jqnt.scales import IntegerScales, PowersOfTwo, ScaleFormat
from jqnt.types import Symmetry

__all__ = ["block_axis", "in_blocks", "scale_grid"]


def block_axis(rule: Rule, fmt: Microscaling, why: str) -> int | None:
    """The axis that the rule names for microscaled blocks, whose size the format has."""
    given = rule.granularity
    if given is None or given == fmt.block:
        return None
    if isinstance(given, Granularity) and isinstance(given.axis, int) and given.block == fmt.block:
        return given.axis
    raise ConfigError(f"{why}: {fmt.name} has blocks of {fmt.block} along one axis, not {given}")


def in_blocks(spec: Spec, graph: Graph, members: Sequence[str]) -> dict[str, Spec]:
    """The specs of a set of tensors that would share a quantizer, if it were not microscaled.

    Each that a product reads is in blocks along the axis that the product sums over; if there is
    none, the first is, along its channels. Raises ConfigError where products disagree.
    """
    assert isinstance(spec.format, Microscaling)
    given, size, specs = spec.granularity.axis, spec.format.block, {}
    for name in members:
        axes = {
            axis
            for node in graph.readers.get(name, ())
            for i, read in enumerate(node.inputs)
            if read == name and (axis := summed_axis(node, i)) is not None
        }
        if len(axes) > 1 and given is None:
            raise ConfigError(
                f"{spec.rule}: products sum {name!r} over several axes; give a Granularity, or "
                f"put an Identity before one of them"
            )
        if axes:
            axis = axes.pop() if given is None else given
            specs[name] = replace(spec, granularity=Granularity(axis, size))
    if specs:
        return specs
    maker = graph.producer.get(members[0])
    channels = 1 if maker is not None and maker.op in ("Conv", "ConvTranspose") else -1
    axis = channels if given is None else given
    return {members[0]: replace(spec, granularity=Granularity(axis, size))}


def scale_grid(
    rule: Rule, granularity: Granularity, channel_axis: int | None, symmetric: Symmetry, why: str
) -> ScaleFormat | None:
    """The grid of the scales that the rule asks for; ConfigError where there can be none."""
    if rule.scale_bits is None:
        return PowersOfTwo() if rule.scale_format else None
    if granularity.block is None or channel_axis is None or symmetric is not True:
        raise ConfigError(
            f"{why}: integer block scales need a weight with output channels, on a symmetric grid "
            f"in blocks (granularity=64, say)"
        )
    return IntegerScales(rule.scale_bits, channel_axis)
