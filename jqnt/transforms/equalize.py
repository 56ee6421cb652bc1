"""Cross-layer equalization: moves scale between layers until both use their grids well."""

import numpy as np

from jqnt.errors import ConfigError
from jqnt.graph.ir import Graph
from jqnt.transforms.bounds import scale_bound, split_clip
from jqnt.transforms.channels import Pair, equalizable_pairs
from jqnt.transforms.rewrite import prune
from jqnt.types import Params

__all__ = ["equalize"]


def equalize(
    graph: Graph, params: Params, *, tolerance: float = 1e-3, max_sweeps: int = 200
) -> tuple[Graph, Params]:
    """The same float function, with the channel ranges of consecutive layers made equal.

    For every tensor between a weight W1 (with bias b1) and a weight W2, with ranges per channel
    r1_i = max|W1[i]| and r2_i = max|W2[:, i]|,

        s_i = sqrt(r1_i * r2_i) / r2_i;   W1[i] /= s_i,   b1[i] /= s_i,   W2[:, i] *= s_i

    over all pairs, again and again until no |log s_i| exceeds `tolerance`. A channel without
    range is left alone. Between the two may stand whatever commutes with a positive factor per
    channel: Relu, LeakyRelu, PRelu, pooling, zero padding, Flatten. Clip, and so ReLU6, commutes
    if its bounds are divided by s_i too: it becomes Relu and Min (or Max and Min) with a bound
    per channel. Tensors with a second reader, or that are outputs, stay.

    Fold batch normalization first. Source: Nagel et al. 2019 (DFQ), eq. 9-11, section 4.1.
    """
    if tolerance <= 0 or max_sweeps < 1:
        raise ConfigError("equalization needs a positive tolerance and at least one sweep")
    pairs = equalizable_pairs(graph, params)
    # float64, so that hundreds of sweeps leave the function where it was.
    values = {
        name: np.asarray(params[name], np.float64)
        for pair in pairs
        for name in (pair.first.tensor, pair.first.bias, pair.second.tensor)
        if name is not None
    }
    scales = [np.ones(pair.channels) for pair in pairs]
    for _ in range(max_sweeps):
        largest = 0.0
        for i, pair in enumerate(pairs):
            s = _step(pair, values)
            scales[i] = scales[i] * s
            largest = max(largest, float(np.abs(np.log(s)).max()))
        if largest <= tolerance:
            break
    params = params | {k: v.astype(np.asarray(params[k]).dtype) for k, v in values.items()}
    for pair, s in zip(pairs, scales, strict=True):
        for node in pair.between:
            if node.op == "Clip":
                graph = split_clip(graph, node, 1 / s, pair.trailing)
            elif node.op in ("Min", "Max"):
                graph, params = scale_bound(graph, params, node, 1 / s)
    return prune(graph, params)


def _step(pair: Pair, values: dict[str, np.ndarray]) -> np.ndarray:
    """Applies eq. 11 to one pair in `values`; returns s."""
    w1, w2 = values[pair.first.tensor], values[pair.second.tensor]
    r1 = np.abs(np.moveaxis(w1, pair.first.channel_axis or 0, 0)).reshape(pair.channels, -1).max(1)
    r2 = _input_ranges(pair, w2)
    s = np.ones(pair.channels)
    alive = (r1 > 0) & (r2 > 0)
    s[alive] = np.sqrt(r1[alive] * r2[alive]) / r2[alive]
    shape = [1] * w1.ndim
    shape[pair.first.channel_axis or 0] = -1
    values[pair.first.tensor] = w1 / s.reshape(shape)
    if pair.first.bias is not None:
        values[pair.first.bias] = values[pair.first.bias] / s
    values[pair.second.tensor] = w2 * _input_factors(pair, w2.shape, s)
    return s


def _input_ranges(pair: Pair, w: np.ndarray) -> np.ndarray:
    """max|w| over all that multiplies an input channel."""
    if pair.group > 1:
        grouped = np.abs(w).reshape(pair.group, w.shape[0] // pair.group, w.shape[1], -1)
        inputs = grouped.max((1, 3)).reshape(-1)
    else:
        moved = np.moveaxis(np.abs(w), pair.second.input_axis, 0)
        inputs = moved.reshape(moved.shape[0], -1).max(1)
    return inputs.reshape(pair.channels, pair.repeat).max(1)


def _input_factors(pair: Pair, shape: tuple[int, ...], s: np.ndarray) -> np.ndarray:
    """s per input channel, in a shape that broadcasts against the weight."""
    factors = np.repeat(s, pair.repeat)
    if pair.group > 1:
        per_row = np.repeat(factors.reshape(pair.group, -1), shape[0] // pair.group, axis=0)
        return per_row.reshape(per_row.shape + (1,) * (len(shape) - 2))
    broadcast = [1] * len(shape)
    broadcast[pair.second.input_axis] = -1
    return factors.reshape(broadcast)
