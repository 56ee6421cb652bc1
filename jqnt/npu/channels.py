"""A workload whose channel counts are variables: which are free, and what follows from them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jqnt.errors import ConfigError, nearest
from jqnt.npu.liveness import live_elements
from jqnt.npu.work import PRODUCT_KINDS
from jqnt.npu.workload import Workload
from jqnt.types import Leaf

__all__ = ["Widths", "free_widths", "scaled_channels"]


@dataclass(frozen=True)
class Widths:
    """The channel counts of a workload that can change without touching its inputs and outputs.

    `names` are those of the first convolution or dense layer that has the width, `channels` its
    count now. `of_group` is the width of each group's result, -1 where it is fixed, and -2 where
    it is the sum of several (a concatenation, and what keeps its channels).
    """

    names: tuple[str, ...]
    channels: tuple[int, ...]
    of_group: tuple[int, ...]


def free_widths(workload: Workload) -> Widths:
    """Layers joined by an addition, a gate, a grouped convolution or elementwise work share one.

    Fixed are the widths that reach an output of the graph, a product of two activations, or a sum
    with a concatenation.
    """
    count = len(workload.groups)
    fixed, parent = count, list(range(count + 1))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        low, high = sorted((root(i), root(j)))
        parent[low if high == root(fixed) else high] = high if high == root(fixed) else low

    channels = np.asarray(workload.dims.groups * workload.dims.out_channels)
    sources = _sources(workload)
    joined: set[int] = set()
    for group in range(count):
        own = sources[group]
        if workload.kinds[group] in ("conv", "dense"):
            grouped = float(np.asarray(workload.dims.groups)[group]) > 1
            tied = own if grouped else own[1:]
        elif workload.kinds[group] == "depthwise":
            tied = own
        elif workload.kinds[group] == "matmul":
            tied = [fixed, *own]
        else:
            tied = [s for s in own if s < 0 or channels[s] == channels[group]]
            tied = tied or ([] if workload.ops[group] == "Concat" else own)
            if not tied:
                joined.add(group)
        for source in tied:
            join(group, source if source >= 0 else fixed)
    for producer, consumer in workload.edges:
        if consumer < 0 <= producer:
            join(producer, fixed)
    return _named(workload, joined, sources, [root(g) for g in range(count)], root(fixed))


def _named(
    workload: Workload, joined: set[int], sources: list[list[int]], roots: list[int], fixed: int
) -> Widths:
    """Classes of groups to widths; a class that is a sum and something else too fixes all of it."""
    product = {
        roots[g]
        for g, kind in enumerate(workload.kinds)
        if kind in ("conv", "dense", "depthwise")
    }  # fmt: skip
    frozen, sums = {fixed}, {roots[g] for g in joined}
    doubtful = [g for g in joined if roots[g] in product or roots[g] == fixed]
    several = [g for g in joined if sum(roots[h] == roots[g] for h in joined) > 1]
    stack = [*doubtful, *several]
    while stack:
        group = stack.pop()
        frozen.add(roots[group])
        stack += [h for h in joined if roots[h] in {roots[s] for s in sources[group] if s >= 0}
                  and roots[h] not in frozen]  # fmt: skip
        frozen |= {roots[s] for s in sources[group] if s >= 0}
    channels = np.asarray(workload.dims.groups * workload.dims.out_channels)
    order: dict[int, int] = {}
    counts, names, found = [], [], []
    for group, root in enumerate(roots):
        free = root not in frozen and root not in sums
        if free and root not in order and workload.kinds[group] in PRODUCT_KINDS:
            order[root] = len(order)
            names.append(workload.groups[group])
            counts.append(int(channels[group]))
    for root in roots:
        summed = root in sums and root not in frozen
        found.append(order.get(root, -1) if not summed else -2)
    return Widths(tuple(names), tuple(counts), tuple(found))


def scaled_channels(
    workload: Workload, widths: Widths, factors: Mapping[str, Leaf] | Float[Array, " widths"]
) -> Workload:
    """The workload with each free width times its factor (by name, 1 for the others; or in order).

    Dimensions, weights, biases, activations and what is alive follow, so that a latency's slope
    in the factors is that of the whole network. At factors that give whole channels it is the
    workload of the network with those channels. Raises ConfigError for an unknown width.
    """
    if isinstance(factors, Mapping):
        for name in factors:
            if name not in widths.names:
                raise ConfigError(f"no free width {name!r}{nearest(name, widths.names)}")
        factors = jnp.stack([jnp.float32(factors.get(name, 1.0)) for name in widths.names])
    own = _factors(workload, widths, factors)
    edge = jnp.stack([own[a] if a >= 0 else jnp.float32(1) for a, _ in workload.edges])
    consumer = np.array([b for _, b in workload.edges])
    first = np.array([np.flatnonzero(consumer == g)[:1].sum() for g in range(len(own))], int)
    out, into = jnp.stack(own), edge[first]
    d = workload.dims
    dense = np.array([kind in ("conv", "dense") for kind in workload.kinds])
    grouped = np.asarray(d.groups > 1) & np.array([k in PRODUCT_KINDS for k in workload.kinds])
    dense = dense & ~grouped
    sizes = workload.edge_elements * edge
    inside = consumer >= 0
    in_elements = jnp.zeros(len(own)).at[consumer[inside]].add(sizes[inside])
    out_elements = workload.out_elements * out
    return replace(
        workload,
        dims=replace(
            d,
            in_channels=d.in_channels * jnp.where(dense, into, 1.0),
            out_channels=d.out_channels * jnp.where(grouped, 1.0, out),
            groups=d.groups * jnp.where(grouped, out, 1.0),
        ),
        weight_elements=workload.weight_elements * jnp.where(dense, into * out, out),
        bias_elements=workload.bias_elements * out,
        in_elements=in_elements,
        out_elements=out_elements,
        edge_elements=sizes,
        live_elements=live_elements(
            workload.edges, workload.edge_tensors, sizes, workload.outputs, out_elements
        ),
    )


def _factors(workload: Workload, widths: Widths, factors: Array) -> list[Array]:
    """The factor of each group's result; that of a sum is the mean by size."""
    found: list[Array] = []
    sources = _sources(workload)
    sizes = np.asarray(workload.edge_elements)
    for group, width in enumerate(widths.of_group):
        if width >= 0:
            found.append(factors[width])
        elif width == -1 or not sources[group]:
            found.append(jnp.float32(1))
        else:
            at = [e for e, (_, b) in enumerate(workload.edges) if b == group]
            share = sizes[at] / sizes[at].sum()
            terms = [found[s] if s >= 0 else jnp.float32(1) for s in sources[group]]
            found.append(jnp.sum(jnp.stack(terms) * share))
    return found


def _sources(workload: Workload) -> list[list[int]]:
    """The producer of each input of each group, -1 for a graph input."""
    found: list[list[int]] = [[] for _ in workload.groups]
    for producer, consumer in workload.edges:
        if consumer >= 0:
            found[consumer].append(producer)
    return found
