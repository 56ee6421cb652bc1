"""Tables of latency by group and pair, and the latency of a choice or of its probabilities."""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jqnt.encodings import Encodings
from jqnt.npu.assignment import assignment_of
from jqnt.npu.conversions import conversions, expected_conversion
from jqnt.npu.cost import group_costs, legal_groups, with_blocks
from jqnt.npu.devices import Device
from jqnt.npu.elements import ALL, Elements
from jqnt.npu.pairs import Pair
from jqnt.npu.smooth import EXACT, Calculus
from jqnt.npu.workload import Workload
from jqnt.types import Leaf

__all__ = ["Tables", "costs", "expected_latency", "latency", "latency_range", "tables"]


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


@partial(jax.jit, static_argnames=("kinds",))
def costs(workload: Workload, device: Device, *, kinds: tuple[str, ...]) -> tuple[Array, Array]:
    """Of `tables` only those of these fields, [kinds, groups, pairs], and the constant: the rest
    isn't computed, and no program for it is compiled."""
    table = tables(workload, device)
    return jnp.stack([getattr(table, kind) for kind in kinds]), table.constant_s


def expected_latency(
    tables: Tables, probabilities: Float[Array, "groups pairs"]
) -> Float[Array, ""]:
    """constant + sum_g sum_p probability[g, p] * latency[g, p], in seconds.

    At one-hot probabilities it is the latency of that plan, exactly. The entries of illegal pairs
    do not count.
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
    """Seconds of a plan: one pair for all groups, a pair per group by name, or encodings.

    The sum of the plan's entries in the tables; with the element `conversions` (as in `PLAN`) also
    what it costs where formats change between groups.
    """
    table = tables(workload, device, elements=elements, calculus=calculus)
    columns = assignment_of(workload, choice, device)
    rows = jax.nn.one_hot(np.asarray(columns), len(table.pairs))
    seconds = expected_latency(table, rows)
    if elements.conversions and len({device.pairs[c].activation for c in columns}) > 1:
        seconds = seconds + expected_conversion(conversions(workload, device), rows)
    return seconds


def latency_range(tables: Tables) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(fastest, slowest) latency over all legal plans."""
    low = jnp.min(tables.latency_s, axis=1)
    high = jnp.max(jnp.where(tables.legal, tables.latency_s, -jnp.inf), axis=1)
    return tables.constant_s + jnp.sum(low), tables.constant_s + jnp.sum(high)


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
