"""Conversions where activation formats change between groups: pairwise costs on edges."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jqnt.encodings import Encodings
from jqnt.npu.assignment import assignment_of
from jqnt.npu.devices import Device
from jqnt.npu.pairs import Pair
from jqnt.npu.workload import Workload
from jqnt.types import Leaf

__all__ = ["Conversions", "conversion_latency", "conversions", "expected_conversion"]


@struct.dataclass
class Conversions:
    """latency_s[e, p, q]: seconds on edge e when its producer runs in pair p, its consumer in q.

    `producer` and `consumer` are group indices; edges of the graph's inputs and outputs are not
    here. A tensor with several consumers of one format is converted for each.
    """

    latency_s: Leaf
    producer: Leaf
    consumer: Leaf
    pairs: tuple[Pair, ...] = struct.field(pytree_node=False)


def conversions(workload: Workload, device: Device) -> Conversions:
    """elements * cost of a conversion / rate of the wider format + dispatch, or 0."""
    inside = [i for i, (a, b) in enumerate(workload.edges) if a >= 0 and b >= 0]
    edges = np.asarray([workload.edges[i] for i in inside], np.int32).reshape(-1, 2)
    elements = jnp.asarray(workload.edge_elements, jnp.float32)[np.asarray(inside, np.int32)]
    rates = {}
    for a in device.pairs:
        for b in device.pairs:
            wide = max((a, b), key=lambda pair: (pair.activation_bits, pair.floating)).activation
            change = a.activation != b.activation
            cost = device.cost_of("convert", wide) / device.vector_per_s[wide]
            rates[a, b] = (cost, device.dispatch_s) if change else (0.0, 0.0)
    each = jnp.asarray([[rates[a, b][0] for b in device.pairs] for a in device.pairs])
    once = jnp.asarray([[rates[a, b][1] for b in device.pairs] for a in device.pairs])
    return Conversions(
        latency_s=elements[:, None, None] * each[None] + once[None],
        producer=edges[:, 0],
        consumer=edges[:, 1],
        pairs=device.pairs,
    )


def expected_conversion(
    conversions: Conversions, probabilities: Float[Array, "groups pairs"]
) -> Float[Array, ""]:
    """sum over edges of p_producer^T latency p_consumer: bilinear, and exact at one-hot points."""
    source = probabilities[conversions.producer]
    target = probabilities[conversions.consumer]
    return jnp.einsum("ep,epq,eq->", source, conversions.latency_s, target)


def conversion_latency(
    workload: Workload,
    choice: Encodings | Mapping[str, str | Pair] | str | Pair,
    device: Device,
) -> Float[Array, ""]:
    """Seconds that a plan's changes of format cost, on top of `latency`."""
    columns = np.asarray(assignment_of(workload, choice, device))
    rows = jax.nn.one_hot(columns, len(device.pairs))
    return expected_conversion(conversions(workload, device), rows)
