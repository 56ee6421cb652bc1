"""Hardware feedback: gains and biases of layers fitted to the tensors that a device computed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jqnt.encodings import Encodings
from jqnt.errors import DataError
from jqnt.formats import Integer
from jqnt.graph.ir import Graph, Node
from jqnt.graph.lower import lower
from jqnt.graph.match import sole_reader
from jqnt.graph.roles import Weight, weight_of
from jqnt.thaw import thaw
from jqnt.transforms.bounds import clip_bounds
from jqnt.types import Params

__all__ = ["Tuned", "tune_to_device"]


@dataclass(frozen=True)
class Tuned:
    """One layer: the root mean square difference from the device's tensor, before and after.

    `before` is that of the model with the layers before this one tuned already; `kept` says
    whether the fit lowered it, and so was taken.
    """

    tensor: str
    weight: str
    before: float
    after: float
    kept: bool


def tune_to_device(
    graph: Graph,
    params: Params,
    encodings: Encodings,
    batches: Iterable[Mapping[str, Any]],
    device: Mapping[str, np.ndarray],
) -> tuple[dict[str, Any], Encodings, tuple[Tuned, ...]]:
    """(params, encodings, layers) whose simulation is nearer to what the device computed.

    For each layer with a weight, in the graph's order, the device's tensor behind it is fitted by
    d = g_c y + t_c, by least squares over what neither a Relu, a Clip nor the grid cuts off. Then
    sw *= g, W *= g, so that weight codes stay, and b = g b + t. The gain g is per channel where
    the weight's scale is, else one; it is the factor sx sw / sy by which a device requantizes. A
    layer without a bias of its own gets the gain alone. `device` holds tensor name -> the values
    of all samples of `batches`, or of the first ones, in order.

    Raises DataError for values that are no whole samples, or where no layer's tensor is there.
    """
    kept = [{name: batch[name] for name in graph.inputs} for batch in batches]
    candidates = (_layer(graph, params, node, encodings, device) for node in graph.nodes)
    layers = [layer for layer in candidates if layer is not None]
    if not layers:
        raise DataError("the device gave no encoded tensor behind a layer with an integer weight")
    names = tuple(dict.fromkeys(layer.tensor for layer in layers))
    apply = jax.jit(lower(graph), static_argnames="want")

    def simulated(params: Mapping[str, Any], encodings: Encodings) -> dict[str, np.ndarray]:
        parts = [apply(params, thaw(encodings), batch, want=names) for batch in kept]
        return {n: np.concatenate([np.asarray(p[n], np.float64) for p in parts]) for n in names}

    now, params = simulated(params, encodings), dict(params)
    theirs = {name: _samples(name, device[name], now[name]) for name in names}
    rows = []
    for layer in layers:
        d, y = theirs[layer.tensor], now[layer.tensor]
        gain, shift = _fit(layer, encodings, y[: len(d)], d)
        trial = _changed(layer, params, encodings, gain, shift)
        after = simulated(*trial)
        before, left = (_rms(v[layer.tensor][: len(d)] - d) for v in (now, after))
        better = left < before
        if better:
            (params, encodings), now = trial, after
        rows.append(Tuned(layer.tensor, layer.weight.tensor, before, left, better))
    return params, encodings, tuple(rows)


@dataclass(frozen=True)
class _Layer:
    """`tensor` is the encoded one behind the node; its values lie uncut between the bounds."""

    weight: Weight
    per_channel: bool
    tensor: str
    axis: int
    low: float
    high: float


def _layer(
    graph: Graph, params: Params, node: Node, encodings: Encodings, device: Mapping[str, Any]
) -> _Layer | None:
    weight = weight_of(node, {*graph.params})
    if weight is None or weight.tensor not in encodings or len(graph.readers[weight.tensor]) != 1:
        return None
    if not isinstance(encodings[weight.tensor].format, Integer):
        return None
    tensor, low, high = node.outputs[0], -np.inf, np.inf
    while tensor not in encodings:
        node_ = sole_reader(graph, tensor)
        if node_ is None or node_.op not in ("Relu", "Clip"):
            return None
        cut = (0.0, np.inf) if node_.op == "Relu" else clip_bounds(graph, node_)
        if cut is None:
            return None
        low, high, tensor = max(low, cut[0]), min(high, cut[1]), node_.outputs[0]
    encoding = encodings[tensor]
    if tensor not in device or not isinstance(encoding.format, Integer) or encoding.scale.ndim:
        return None
    grid = [float(encoding.dequantize(np.full((), q))) for q in encoding.format.limits]
    half = float(encoding.scale) / 2
    own = weight.bias is None or len(graph.readers[weight.bias]) == 1
    if weight.channel_axis is None or not own or node.attrs.get("beta", 1.0) != 1:
        return None
    if weight.bias is None and len(node.inputs) > 2 and node.inputs[2]:
        return None  # a bias that is computed
    axis = 1 if node.op in ("Conv", "ConvTranspose") else weight.channel_axis
    axis = -1 if node.op == "Gemm" else axis
    rank = np.ndim(params[weight.tensor])
    scales = encodings[weight.tensor]
    axes = scales.granularity.axes(rank) if scales.scale.ndim == 1 else ()
    whole = scales.granularity.block is None and axes == (weight.channel_axis % rank,)
    return _Layer(weight, whole, tensor, axis, max(low, grid[0]) + half, min(high, grid[1]) - half)


def _samples(name: str, device: np.ndarray, ours: np.ndarray) -> np.ndarray:
    theirs = np.asarray(device, np.float64)
    if not theirs.size or theirs.size % ours[0].size:
        raise DataError(
            f"the device's tensor {name!r} has {theirs.size} values, which is no multiple of "
            f"{ours[0].size}, the values of one sample"
        )
    return theirs.reshape(-1, *ours.shape[1:])[: len(ours)]


def _fit(
    layer: _Layer, encodings: Encodings, y: np.ndarray, d: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(gain, shift) per channel; 1 and 0 where fewer than two values are uncut."""
    y, d = (np.moveaxis(v, layer.axis, 0).reshape(v.shape[layer.axis], -1) for v in (y, d))
    inside = ((y > layer.low) & (y < layer.high) & (d > layer.low) & (d < layer.high)).astype(float)
    count = np.maximum(inside.sum(1), 1)
    free = layer.weight.bias is not None
    centre = [(v * inside).sum(1) / count * free for v in (y, d)]
    dy, dd = ((v - c[:, None]) * inside for v, c in zip((y, d), centre, strict=True))
    cross, square = (dy * dd).sum(1), (dy * dy).sum(1)
    if encodings[layer.weight.tensor].scale.ndim == 0:
        cross, square = (np.full(len(y), v.sum()) for v in (cross, square))
    elif not layer.per_channel:
        cross = square = np.zeros(len(y))
    known = (square > 0) & (cross > 0)
    gain = np.where(known, cross / np.where(known, square, 1), 1.0)
    shift = np.where(inside.sum(1) > 1, centre[1] - gain * centre[0], 0.0)
    return gain, shift


def _changed(
    layer: _Layer,
    params: Mapping[str, Any],
    encodings: Encodings,
    gain: np.ndarray,
    shift: np.ndarray,
) -> tuple[dict[str, Any], Encodings]:
    """The params and encodings of the layer with `gain` and `shift`."""
    weight, params, tensors = layer.weight, dict(params), dict(encodings.tensors)
    codes = {name: code for name, code in encodings.codes.items() if name != weight.bias}
    encoding = tensors[weight.tensor]
    factor = gain[0] if encoding.scale.ndim == 0 else gain if layer.per_channel else 1.0
    scale = np.asarray(encoding.scale * factor, np.float32)
    old = np.asarray(params[weight.tensor])
    # The quotient of the float32 scales, so that rounding W / sw gives the codes it gave.
    ratio = encoding.expand(np.asarray(scale.astype(np.float64) / encoding.scale), old.shape)
    params[weight.tensor] = (old * ratio).astype(old.dtype)
    tensors[weight.tensor] = replace(encoding, scale=scale)
    if weight.bias is not None:
        bias = np.asarray(params[weight.bias])
        params[weight.bias] = (bias * gain + shift).astype(bias.dtype)
        if weight.bias in tensors:
            own = tensors[weight.bias]
            data = tensors.get(weight.data)
            new = own.scale * factor if data is None else data.scale * scale
            tensors[weight.bias] = replace(own, scale=np.asarray(new, np.float32))
    return params, Encodings(tensors, codes)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
