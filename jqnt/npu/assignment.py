"""Which pair of formats each group of a workload runs in under a plan."""

from collections.abc import Mapping

from jqnt.encodings import Encodings
from jqnt.errors import ConfigError, nearest
from jqnt.formats import Format
from jqnt.npu.devices import Device
from jqnt.npu.pairs import Pair, pair_of
from jqnt.npu.workload import Workload

__all__ = ["assignment_of", "group_pair"]


def assignment_of(
    workload: Workload,
    choice: Encodings | Mapping[str, str | Pair] | str | Pair,
    device: Device,
) -> tuple[int, ...]:
    """The column (index into the device's pairs) of each group under a choice.

    Encodings give a group the formats of its weight and of its first input that has one; a group
    without any runs in the device's float pair. Raises ConfigError for a pair that the device
    does not have or that is illegal for the operator, and for an unknown group.
    """
    if isinstance(choice, Encodings):
        formats = {name: encoding.format for name, encoding in choice.items()}
        names = [
            group_pair(workload, index, formats, device) for index in range(len(workload.groups))
        ]
    elif isinstance(choice, Mapping):
        for group in choice:
            if group not in workload.groups:
                raise ConfigError(f"no group {group!r}{nearest(group, workload.groups)}")
        missing = [group for group in workload.groups if group not in choice]
        if missing:
            raise ConfigError(f"the choice lacks group {missing[0]!r} and {len(missing) - 1} more")
        names = [choice[group] for group in workload.groups]
    else:
        names = [choice] * len(workload.groups)
    columns = []
    for index, name in enumerate(names):
        pair = device.pair(name if isinstance(name, str) else name.name)
        rules = dict(device.legal).get(workload.ops[index])
        if rules is not None and pair.name not in rules:
            raise ConfigError(
                f"{workload.ops[index]} group {workload.groups[index]!r} cannot run in "
                f"{pair.name} on {device.name}; it can in {', '.join(rules)}"
            )
        columns.append(device.pairs.index(pair))
    return tuple(columns)


def group_pair(
    workload: Workload, index: int, formats: Mapping[str, Format], device: Device
) -> Pair:
    """The pair in which a group runs when tensors carry `formats`: those of its weight and of its
    first input that has one; 8-bit weights where it has no weight."""
    tensors = [name for name in workload.inputs[index] if name in formats]
    weight = workload.weights[index]
    if not tensors:
        floats = [pair for pair in device.pairs if pair.floating]
        if not floats:
            raise ConfigError(
                f"group {workload.groups[index]!r}: its input has no encoding, and "
                f"{device.name} has no float format"
            )
        return floats[0]
    activation = formats[tensors[0]]
    if weight in formats:
        return pair_of(formats[weight], activation)
    bits = activation.bits if weight else min(8, activation.bits)
    for pair in device.pairs:
        same = pair_of(activation, activation).activation == pair.activation
        if same and (not weight or pair.weight_bits == bits):
            return pair
    raise ConfigError(
        f"{device.name} has no pair with activations {activation.name} "
        f"(group {workload.groups[index]!r})"
    )
