"""Reductions over axes."""

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.ops.elementwise import root
from jqnt.ops.namespace import axis_of, namespace, numeric
from jqnt.ops.registry import lowering, static

__all__ = []


def _sum(xp, x, axes, keep):
    return xp.sum(x, axis=axes, keepdims=keep, dtype=x.dtype)


def _mean(xp, x, axes, keep):
    return xp.mean(x, axis=axes, keepdims=keep).astype(x.dtype)


def _prod(xp, x, axes, keep):
    return xp.prod(x, axis=axes, keepdims=keep, dtype=x.dtype)


def _max(xp, x, axes, keep):
    return xp.max(x, axis=axes, keepdims=keep, initial=_extreme(x.dtype, -1))


def _min(xp, x, axes, keep):
    return xp.min(x, axis=axes, keepdims=keep, initial=_extreme(x.dtype, 1))


def _extreme(dtype, sign):
    """The neutral element, so that the maximum of nothing is the lowest value."""
    kind = numeric(dtype)
    if kind == "b":
        return sign > 0
    if kind == "f":
        return np.asarray(sign * np.inf, dtype)
    return jnp.iinfo(dtype).max if sign > 0 else jnp.iinfo(dtype).min


def _l1(xp, x, axes, keep):
    return _sum(xp, xp.abs(x), axes, keep)


def _l2(xp, x, axes, keep):
    total = _sum_square(xp, x, axes, keep)
    return (root(total) if xp is jnp else np.sqrt(total)).astype(x.dtype)


def _log_sum(xp, x, axes, keep):
    return xp.log(_sum(xp, x, axes, keep)).astype(x.dtype)


def _log_sum_exp(xp, x, axes, keep):
    if xp is jnp:
        return jax.nn.logsumexp(x, axis=axes, keepdims=keep).astype(x.dtype)
    top = np.max(x, axis=axes, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0)
    total = np.log(np.sum(np.exp(x - top), axis=axes, keepdims=True)) + top
    return (total if keep else np.squeeze(total, axis=axes)).astype(x.dtype)


def _sum_square(xp, x, axes, keep):
    return _sum(xp, x * x, axes, keep)


def _reduction(function):
    def reduced(node, x, axes):
        if axes is None or (not axes and not node.attrs.get("noop_with_empty_axes", 0)):
            axes = range(x.ndim)
        axes = tuple(axis_of(node, axis, x.ndim) for axis in axes)
        xp = namespace(x)
        keep = bool(node.attrs.get("keepdims", 1))
        result = function(xp, x, axes, keep)
        return np.asarray(result) if xp is np else result

    return reduced


def _register(op, function, axes_are_input_since):
    reduced = _reduction(function)

    def by_attribute(node, x):
        return reduced(node, x, node.attrs.get("axes"))

    def by_input(node, x, axes=None):
        return reduced(node, x, () if axes is None else static(node, "axes", axes).tolist())

    by_attribute.__name__ = by_input.__name__ = function.__name__.lstrip("_")
    lowering(op, since=1)(by_attribute)
    lowering(op, since=axes_are_input_since, static=(1,))(by_input)


for _op, _function, _since in (
    ("ReduceL1", _l1, 18),
    ("ReduceL2", _l2, 18),
    ("ReduceLogSum", _log_sum, 18),
    ("ReduceLogSumExp", _log_sum_exp, 18),
    ("ReduceMax", _max, 18),
    ("ReduceMean", _mean, 18),
    ("ReduceMin", _min, 18),
    ("ReduceProd", _prod, 18),
    ("ReduceSum", _sum, 13),
    ("ReduceSumSquare", _sum_square, 18),
):
    _register(_op, _function, _since)
