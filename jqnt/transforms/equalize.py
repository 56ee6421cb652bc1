"""Cross-layer equalization: moves scale between layers until both use their grids well."""

from collections.abc import Iterable, Mapping

import numpy as np

from jqnt.errors import ConfigError, nearest
from jqnt.graph.ir import Graph
from jqnt.transforms.bounds import scale_bound, split_clip
from jqnt.transforms.channels import Pair, equalizable_pairs
from jqnt.transforms.rewrite import prune
from jqnt.types import Params

__all__ = ["equalize", "equalizing_scales", "input_factors", "pair_key", "rescale"]


def equalize(
    graph: Graph, params: Params, *, tolerance: float = 1e-3, max_sweeps: int = 200
) -> tuple[Graph, Params]:
    """The same float function, with the channel ranges of consecutive layers made equal.

    For every tensor between a weight W1 (with bias b1) and a weight W2, with ranges per channel
    r1_i = max|W1[i]| and r2_i = max|W2[:, i]|,

        s_i = sqrt(r1_i * r2_i) / r2_i;   W1[i] /= s_i,   b1[i] /= s_i,   W2[:, i] *= s_i

    over all pairs, again and again until no |log s_i| exceeds `tolerance`. A channel without
    range is left alone. Between the two may stand whatever commutes with a positive factor per
    channel: Relu, LeakyRelu, PRelu, pooling, zero padding, Flatten, a gate's product, and from
    attention's values to the output projection the heads. Clip, and so ReLU6, commutes if its
    bounds are divided by s_i too: it becomes Relu and Min (or Max and Min) with a bound per
    channel. Tensors with a second reader, or that are outputs, stay.

    Fold batch normalization first. Source: Nagel et al. 2019 (DFQ), eq. 9-11, section 4.1.
    """
    scales = equalizing_scales(graph, params, tolerance=tolerance, max_sweeps=max_sweeps)
    return rescale(graph, params, scales)


def equalizing_scales(
    graph: Graph, params: Params, *, tolerance: float = 1e-3, max_sweeps: int = 200
) -> dict[str, np.ndarray]:
    """The s of `equalize`: output tensor of the first layer of a pair -> one per channel."""
    if tolerance <= 0 or max_sweeps < 1:
        raise ConfigError("equalization needs a positive tolerance and at least one sweep")
    pairs = equalizable_pairs(graph, params)
    values = _values(pairs, params)
    scales = [np.ones(pair.channels) for pair in pairs]
    for _ in range(max_sweeps):
        largest = 0.0
        for i, pair in enumerate(pairs):
            s = _best(pair, values)
            _apply(pair, values, s)
            scales[i] = scales[i] * s
            largest = max(largest, float(np.abs(np.log(s)).max()))
        if largest <= tolerance:
            break
    return {pair_key(graph, pair): s for pair, s in zip(pairs, scales, strict=True)}


def rescale(graph: Graph, params: Params, scales: Mapping[str, np.ndarray]) -> tuple[Graph, Params]:
    """The same float function with channels divided by `scales` behind the named layers.

    `scales` maps the output tensor of the first layer of a pair to positive factors s, one per
    channel: W1[i] /= s_i, b1[i] /= s_i, W2[:, i] *= s_i, in float64. Raises ConfigError for a
    tensor that no pair begins with, and for factors that are not positive, finite and as many
    as channels.
    """
    pairs = {pair_key(graph, pair): pair for pair in equalizable_pairs(graph, params)}
    values = _values(pairs.values(), params)
    for tensor, s in scales.items():
        if tensor not in pairs:
            raise ConfigError(
                f"no pair of layers begins with tensor {tensor!r}{nearest(tensor, pairs)}"
            )
        s = np.asarray(s, np.float64)
        if s.shape != (pairs[tensor].channels,) or not (np.isfinite(s) & (s > 0)).all():
            raise ConfigError(
                f"the scales of {tensor!r} must be {pairs[tensor].channels} positive numbers"
            )
        _apply(pairs[tensor], values, s)
    params = params | {k: v.astype(np.asarray(params[k]).dtype) for k, v in values.items()}
    for tensor, s in scales.items():
        for node in pairs[tensor].between:
            if node.op == "Clip":
                graph = split_clip(graph, node, 1 / np.asarray(s), pairs[tensor].trailing)
            elif node.op in ("Min", "Max"):
                graph, params = scale_bound(graph, params, node, 1 / np.asarray(s))
    return prune(graph, params)


def pair_key(graph: Graph, pair: Pair) -> str:
    """The output tensor of the pair's first layer."""
    return next(n for n in graph.nodes if pair.first.tensor in n.inputs).outputs[0]


def _values(pairs: Iterable[Pair], params: Params) -> dict[str, np.ndarray]:
    """In float64, so that hundreds of sweeps leave the function where it was."""
    return {
        name: np.asarray(params[name], np.float64)
        for pair in pairs
        for name in (pair.first.tensor, pair.first.bias, pair.second.tensor)
        if name is not None
    }


def _best(pair: Pair, values: dict[str, np.ndarray]) -> np.ndarray:
    """The s of eq. 11 for one pair."""
    w1, w2 = values[pair.first.tensor], values[pair.second.tensor]
    r1 = np.abs(np.moveaxis(w1, pair.first.channel_axis or 0, 0)).reshape(pair.channels, -1).max(1)
    r2 = _input_ranges(pair, w2)
    s = np.ones(pair.channels)
    alive = (r1 > 0) & (r2 > 0)
    s[alive] = np.sqrt(r1[alive] * r2[alive]) / r2[alive]
    return s


def _apply(pair: Pair, values: dict[str, np.ndarray], s: np.ndarray) -> None:
    """Divides the first weight and bias by s, multiplies the second weight."""
    w1, w2 = values[pair.first.tensor], values[pair.second.tensor]
    shape = [1] * w1.ndim
    shape[pair.first.channel_axis or 0] = -1
    values[pair.first.tensor] = w1 / s.reshape(shape)
    if pair.first.bias is not None:
        values[pair.first.bias] = values[pair.first.bias] / s
    values[pair.second.tensor] = w2 * input_factors(pair, w2.shape, s)


def _input_ranges(pair: Pair, w: np.ndarray) -> np.ndarray:
    """max|w| over all that multiplies an input channel."""
    if pair.group > 1:
        grouped = np.abs(w).reshape(pair.group, w.shape[0] // pair.group, w.shape[1], -1)
        inputs = grouped.max((1, 3)).reshape(-1)
    else:
        moved = np.moveaxis(np.abs(w), pair.second.input_axis, 0)
        inputs = moved.reshape(moved.shape[0], -1).max(1)
    return inputs.reshape(pair.channels, pair.repeat).max(1)


def input_factors(pair: Pair, shape: tuple[int, ...], s: np.ndarray) -> np.ndarray:
    """s per input channel, in a shape that broadcasts against the second weight of `shape`."""
    factors = np.repeat(s, pair.repeat)
    if pair.group > 1:
        per_row = np.repeat(factors.reshape(pair.group, -1), shape[0] // pair.group, axis=0)
        return per_row.reshape(per_row.shape + (1,) * (len(shape) - 2))
    broadcast = [1] * len(shape)
    broadcast[pair.second.input_axis] = -1
    return factors.reshape(broadcast)
