"""What values a channel takes: mean, deviation, largest; as batch norm says, or as measured."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.errors import DataError
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.types import Params

__all__ = ["Channel", "bn_statistics", "measured_statistics"]


class Channel(NamedTuple):
    """Of a tensor's channels: mean, standard deviation, and the largest magnitude; float64."""

    mean: np.ndarray
    deviation: np.ndarray
    largest: np.ndarray


def bn_statistics(graph: Graph, params: Params) -> dict[str, Channel]:
    """Output of each BatchNormalization -> mean B and deviation |scale|, with no data at all.

    To be called before `fold_bn`, which keeps the tensors' names. The largest magnitude is taken
    as that of six deviations. Source: Nagel et al. 2019 (DFQ), section 4.2.1.
    """
    found = {}
    for node in graph.nodes:
        if node.op != "BatchNormalization" or not all(n in params for n in node.inputs[1:3]):
            continue
        scale, shift = (np.asarray(params[n], np.float64) for n in node.inputs[1:3])
        deviation = np.abs(scale)
        found[node.outputs[0]] = Channel(shift, deviation, np.abs(shift) + 6 * deviation)
    return found


def measured_statistics(
    graph: Graph,
    params: Params,
    tensors: Collection[str],
    batches: Iterable[Mapping[str, Any]],
    *,
    axis: int = 1,
) -> dict[str, Channel]:
    """The same of the float network on data, for `tensors` with channels along `axis`.

    Raises DataError if there are no batches.
    """
    apply, names = lower(graph), tuple(graph.check(name) for name in tensors)

    @jax.jit
    def sums(params: Params, inputs: Mapping[str, Any]) -> dict[str, Any]:
        values = apply(params, {}, inputs, want=names)
        rows = {k: jnp.moveaxis(v, axis, 0).reshape(v.shape[axis], -1) for k, v in values.items()}
        # Squares about the batch's own mean, since float32 would lose them beside a large one.
        return {
            k: (v.shape[1], jnp.mean(v, 1), jnp.var(v, 1), jnp.max(jnp.abs(v), 1))
            for k, v in rows.items()
        }

    total: dict[str, Any] = {}
    for batch in batches:
        inputs = {name: batch[name] for name in graph.inputs}
        for name, (count, mean, variance, largest) in sums(params, inputs).items():
            n, m, v = float(count), *(np.asarray(a, np.float64) for a in (mean, variance))
            first, second, most, seen = total.get(name, (0.0, 0.0, 0.0, 0.0))
            total[name] = (
                first + n * m, second + n * (v + m**2),
                np.maximum(most, np.asarray(largest, np.float64)), seen + n,
            )  # fmt: skip
    if names and not total:
        raise DataError("there are no batches to measure statistics on")
    found = {}
    for name, (first, second, most, seen) in total.items():
        mean = first / seen
        found[name] = Channel(mean, np.sqrt(np.maximum(second / seen - mean**2, 0)), most)
    return found
