"""Losses over class scores (batch, class, d1, ...) and class indices (batch, d1, ...)."""

from jqnt.errors import ModelError
from jqnt.ops.namespace import namespace
from jqnt.ops.registry import lowering
from jqnt.ops.softmax import log_softmax

__all__ = []


@lowering("NegativeLogLikelihoodLoss", since=12)
def negative_log_likelihood_loss(node, scores, target, weight=None):
    """https://onnx.ai/onnx/operators/onnx__NegativeLogLikelihoodLoss.html"""
    return _loss(node, namespace(scores, target, weight), scores, target, weight)


@lowering("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy_loss(node, scores, target, weight=None):
    """https://onnx.ai/onnx/operators/onnx__SoftmaxCrossEntropyLoss.html"""
    xp = namespace(scores, target, weight)
    log_probability = log_softmax(xp, scores, (1,))
    return _loss(node, xp, log_probability, target, weight), log_probability


def _loss(node, xp, scores, target, weight):
    """-weight[target] * scores[target], which is 0 where the target is `ignore_index`.

    The mean divides by the sum of the weights.
    """
    ignored = node.attrs.get("ignore_index")
    valid = xp.ones(target.shape, bool) if ignored is None else target != ignored
    inside = xp.where(valid, target, xp.zeros_like(target))
    picked = xp.take_along_axis(scores, xp.expand_dims(inside, 1), axis=1)
    factor = xp.ones(target.shape, scores.dtype) if weight is None else xp.take(weight, inside)
    factor = xp.where(valid, factor, xp.zeros_like(factor))
    loss = -xp.squeeze(picked, 1) * factor
    reduction = node.attrs.get("reduction", "mean")
    if reduction == "none":
        return loss
    if reduction == "sum":
        return xp.asarray(xp.sum(loss))
    if reduction == "mean":
        return xp.asarray((xp.sum(loss) / xp.sum(factor)).astype(scores.dtype))
    raise ModelError(f"{node.op} node {node.name!r}: unknown reduction {reduction!r}")
