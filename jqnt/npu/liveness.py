"""Which activations exist while a group runs: from its first use of memory to its last reader."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jqnt.types import Leaf

__all__ = ["live_elements"]


def live_elements(
    edges: Sequence[tuple[int, int]],
    tensors: Sequence[str],
    edge_elements: Leaf,
    outputs: Sequence[str],
    out_elements: Leaf,
) -> Float[Array, " groups"]:
    """Elements of the tensors that are alive at each group, its own result included, [groups].

    A tensor lives from its producer (a graph input from the first group) to its last reader (a
    graph output to the end). Arguments as in `Workload`: producer and consumer of each edge, its
    tensor and size; each group's output and its size. Linear in the sizes, which may be traced.
    """
    count = len(outputs)
    made = {name: group for group, name in enumerate(outputs)}
    last = dict(made)
    for (producer, consumer), name in zip(edges, tensors, strict=True):
        made.setdefault(name, max(producer, 0))
        last[name] = max(last.get(name, 0), consumer if consumer >= 0 else count)
    first = {name: at for at, name in reversed(list(enumerate(tensors))) if name not in {*outputs}}
    order = [*outputs, *first]
    chosen = np.array(list(first.values()), int)
    size = jnp.concatenate([jnp.asarray(out_elements), jnp.asarray(edge_elements)[chosen]])
    begin, end = (np.array([spans[name] for name in order], int) for spans in (made, last))
    change = jnp.zeros(count + 2).at[begin].add(size).at[end + 1].add(-size)
    return jnp.cumsum(change)[:count]
