"""Tables of latency by group and pair, and the latency of a choice or of its probabilities."""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jqnt.encodings import Encodings
from jqnt.errors import ConfigError, nearest
from jqnt.formats import Format
from jqnt.npu.cost import group_costs, legal_groups, with_blocks
from jqnt.npu.devices import Device
from jqnt.npu.elements import ALL, Elements
from jqnt.npu.pairs import Pair, pair_of
from jqnt.npu.smooth import EXACT, Calculus
from jqnt.npu.workload import Workload
from jqnt.types import Leaf

__all__ = [
    "Tables", "assignment_of", "expected_latency", "group_pair", "latency", "latency_range",
    "tables",
]  # fmt: skip


@struct.dataclass
class Tables:
    """Costs of each group (row) in each pair (column); an illegal entry is infinite.

    `constant_s` is what every plan pays: latency of a plan = constant_s + sum of its entries.
    """

    latency_s: Leaf
    size_bytes: Leaf
    bitops: Leaf
    energy_j: Leaf
    constant_s: Leaf
    groups: tuple[str, ...] = struct.field(pytree_node=False)
    pairs: tuple[Pair, ...] = struct.field(pytree_node=False)

    @property
    def legal(self) -> Array:
        """Which entries are legal."""
        return jnp.isfinite(self.latency_s)


def tables(
    workload: Workload,
    device: Device,
    pairs: Sequence[Pair | str] | None = None,
    elements: Elements = ALL,
    calculus: Calculus = EXACT,
) -> Tables:
    """The tables over `pairs` (names or pairs; by default all that the device has).

    What neighbours do to each other (prefetching, what stays on chip) is priced as if they ran
    in the same pair; changes of format between them are `conversions`.
    """
    columns = tuple(device.pair(p if isinstance(p, str) else p.name) for p in pairs or device.pairs)
    return _tables(with_blocks(workload, device), device, columns, elements, calculus)


def expected_latency(
    tables: Tables, probabilities: Float[Array, "groups pairs"]
) -> Float[Array, ""]:
    """constant + sum_g sum_p probability[g, p] * latency[g, p], in seconds.

    At one-hot probabilities it is the latency of that plan, exactly. The entries of illegal
    pairs do not count.
    """
    finite = jnp.where(tables.legal, tables.latency_s, 0.0)
    return tables.constant_s + jnp.sum(probabilities * finite)


def latency(
    workload: Workload,
    choice: Encodings | Mapping[str, str | Pair] | str | Pair,
    device: Device,
    elements: Elements = ALL,
    calculus: Calculus = EXACT,
) -> Float[Array, ""]:
    """Seconds of a plan: one pair for all groups, a pair per group by name, or encodings."""
    table = tables(workload, device, elements=elements, calculus=calculus)
    columns = assignment_of(workload, choice, device)
    rows = jax.nn.one_hot(np.asarray(columns), len(table.pairs))
    return expected_latency(table, rows)


def latency_range(tables: Tables) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(fastest, slowest) latency over all legal plans."""
    low = jnp.min(tables.latency_s, axis=1)
    high = jnp.max(jnp.where(tables.legal, tables.latency_s, -jnp.inf), axis=1)
    return tables.constant_s + jnp.sum(low), tables.constant_s + jnp.sum(high)


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


@partial(jax.jit, static_argnums=(2, 3, 4))
def _tables(
    workload: Workload,
    device: Device,
    columns: tuple[Pair, ...],
    elements: Elements,
    calculus: Calculus,
) -> Tables:
    costs = [group_costs(workload, device, pair, elements, calculus) for pair in columns]
    legal = np.stack([legal_groups(workload, device, pair) for pair in columns], axis=1)

    def column(name: str) -> Array:
        stacked = jnp.stack([getattr(cost, name) for cost in costs], axis=1)
        return jnp.where(legal, stacked, jnp.inf)

    return Tables(
        latency_s=column("latency_s"),
        size_bytes=column("weight_bytes"),
        bitops=column("bitops"),
        energy_j=column("energy_j"),
        constant_s=jnp.asarray(device.graph_s if elements.overheads else 0.0, jnp.float32),
        groups=workload.groups,
        pairs=columns,
    )
