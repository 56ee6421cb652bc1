"""Folds batch normalization into a trained grid: the codes stay, the scales take the gain."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jqnt.errors import UnsupportedError
from jqnt.graph.ir import Graph
from jqnt.graph.match import sole_reader
from jqnt.graph.roles import weight_of
from jqnt.plan import Theta
from jqnt.quantizers import affine_of
from jqnt.transforms.fold_bn import fold_bn
from jqnt.types import Params

__all__ = ["fold_bn_to_scale"]


def fold_bn_to_scale(graph: Graph, params: Params, theta: Theta) -> tuple[Graph, Params, Theta]:
    """`fold_bn` after training with the normalization beside the quantized weight.

        W' = Q(W) * g,  scale' = scale * |g|,  code' = code * sign(g),  g = gamma / sqrt(var + eps)

    along the output channels: the same function, and `plan` of the new graph (for the biases) fits
    the new theta. Weights without a quantizer are folded as `fold_bn` does.

    Raises UnsupportedError, naming the weight, for a grid with one scale, blocks or a zero point,
    and where a code has no negative (the most negative one of a grid that is not strict).
    Source: AIMET's fold_all_batch_norms_to_scale.
    """
    params, theta = dict(params), dict(theta)
    for norm in graph.nodes:
        node = graph.producer.get(norm.inputs[0]) if norm.op == "BatchNormalization" else None
        if node is None or sole_reader(graph, norm.inputs[0]) is not norm:
            continue
        weight = weight_of(node, params)
        if weight is None or weight.tensor not in theta:
            continue
        name = weight.tensor
        grid = affine_of(theta[name])
        if grid is None or grid.granularity.block or grid.granularity.axis != weight.channel_axis:
            raise UnsupportedError(
                f"the grid of {name!r} cannot take one gain per output channel: plan the weight "
                f"with a scale per channel"
            )
        if np.asarray(grid.zero_point).any():
            raise UnsupportedError(f"the grid of {name!r} has a zero point: plan it symmetric")
        gain = _gain(norm, params)
        value = np.asarray(grid(jnp.asarray(params[name], jnp.float32)))
        scale = np.asarray(grid.scale, np.float64)
        _check_signs(name, grid, value, scale, gain)
        params[name] = value
        # A channel of gain 0 is constant: its weight is 0 on any grid.
        size = np.where(gain == 0, 1.0, np.abs(gain))
        theta[name] = replace(grid, scale=jnp.asarray(scale * size, jnp.float32))
    graph, params = fold_bn(graph, params)
    return graph, params, theta


def _gain(norm: Any, params: Params) -> np.ndarray:
    gamma, var = (np.asarray(params[norm.inputs[i]], np.float64) for i in (1, 4))
    return gamma / np.sqrt(var + norm.attrs.get("epsilon", 1e-5))


def _check_signs(
    name: str, grid: Any, value: np.ndarray, scale: np.ndarray, gain: np.ndarray
) -> None:
    if grid.strict or not (gain < 0).any():
        return
    axis = grid.granularity.axis % value.ndim
    groups = np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)
    lowest = -(2.0 ** (np.rint(float(np.max(np.asarray(grid.bits)))) - 1))
    stuck = (gain < 0) & (np.rint(groups / scale[:, None]) <= lowest).any(1)
    if stuck.any():
        raise UnsupportedError(
            f"{name!r}: channel {int(np.argmax(stuck))} has a negative gain and the code "
            f"{int(lowest)}, whose negative the grid lacks: plan the weight with a strict format"
        )
