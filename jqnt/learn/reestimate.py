"""Batch norm re-estimation: statistics of what the quantized network really sends through."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.errors import ConfigError
from jqnt.graph.ir import Graph
from jqnt.learn import walk
from jqnt.learn.source import Stream
from jqnt.types import Params, QParams

__all__ = ["reestimate_bn"]


def reestimate_bn(graph: Graph, params: Params, qparams: QParams, batches: Stream) -> Params:
    """params with the mean and variance of every BatchNormalization measured anew.

    In the graph's order, each over all samples and positions of its input in the network with
    `qparams` and the statistics found so far; the variance is the biased one, as at inference.
    Raises ConfigError if no BatchNormalization has statistics in params (they were folded), and
    DataError for batches that are absent or lack an input. Source: Nagel et al. 2022, section 5.2
    (after quantization-aware training), AIMET's BN re-estimation.
    """
    norms = [
        (i, node)
        for i, node in enumerate(graph.nodes)
        if node.op == "BatchNormalization" and all(n in params for n in node.inputs[3:5])
    ]
    if not norms:
        raise ConfigError(
            f"graph {graph.name!r} has no BatchNormalization left; re-estimate before fold_bn"
        )
    found = {name: jnp.asarray(value) for name, value in params.items()}
    front = walk.start(graph, walk.Networks(found, found, qparams), batches)
    for k, (position, norm) in enumerate(norms):
        networks = walk.Networks(found, found, qparams)
        wanted = [node.inputs[0] for _, node in norms[k:]]
        front = walk.advance(graph, front, walk.frontier(graph, position, wanted), networks)
        values = [pair.lossy for pair in walk.look(graph, front, norm.inputs[:1], networks)]
        mean, variance = _moments([value[norm.inputs[0]] for value in values])
        found[norm.inputs[3]], found[norm.inputs[4]] = mean, variance
    return {
        name: np.asarray(value, np.asarray(params[name]).dtype) for name, value in found.items()
    }


def _moments(values: list[Any]) -> tuple[Any, Any]:
    """Mean and variance per channel over batches of any sizes."""
    means, squares, counts = zip(*(_batch_moments(x) for x in values), strict=True)
    share = np.asarray(counts, np.float64) / np.sum(counts)
    mean = np.einsum("b,bc->c", share, np.asarray(means, np.float64))
    about = np.asarray(squares, np.float64) + (np.asarray(means, np.float64) - mean) ** 2
    variance = np.einsum("b,bc->c", share, about)
    return jnp.asarray(mean, jnp.float32), jnp.asarray(variance, jnp.float32)


@jax.jit
def _batch_moments(x: Any) -> tuple[Any, Any, int]:
    rows = jnp.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
    return jnp.mean(rows, 1), jnp.var(rows, 1), rows.shape[1]
