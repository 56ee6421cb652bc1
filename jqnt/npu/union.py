"""Several workloads as one, so that all are priced in one evaluation."""

from collections.abc import Sequence

import jax
import numpy as np

from jqnt.errors import ConfigError
from jqnt.npu.workload import Workload

__all__ = ["union"]


def union(workloads: Sequence[Workload]) -> Workload:
    """The disjoint union: groups and edges one after another, names kept as they are."""
    if not workloads:
        raise ConfigError("the union of no workloads")
    shift, edges = 0, []
    for workload in workloads:
        edges += [(a + shift * (a >= 0), b + shift * (b >= 0)) for a, b in workload.edges]
        shift += len(workload.groups)
    first = workloads[0]
    leaves = [jax.tree.leaves(workload) for workload in workloads]
    joined = jax.tree.unflatten(
        jax.tree.structure(first),
        [np.concatenate([np.asarray(x) for x in parts]) for parts in zip(*leaves, strict=True)],
    )
    parts = {
        name: tuple(value for workload in workloads for value in getattr(workload, name))
        for name in (
            "groups",
            "kinds",
            "ops",
            "nodes",
            "works",
            "tails",
            "weights",
            "inputs",
            "outputs",
            "edge_tensors",
        )
    }
    return joined.replace(
        name="+".join(workload.name for workload in workloads), edges=tuple(edges), **parts
    )
