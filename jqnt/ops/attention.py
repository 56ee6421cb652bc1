"""Attention with masks and caches, linear attention, rotary embedding."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from jqnt.errors import ModelError
from jqnt.ops.namespace import dtype_of
from jqnt.ops.registry import lowering

__all__ = []


@lowering("Attention", since=23)
def attention(node, q, k, v, mask=None, past_key=None, past_value=None, lengths=None):
    """https://onnx.ai/onnx/operators/onnx__Attention.html

    -> (Y, present_key, present_value, what `qk_matmul_output_mode` asks for). q, k, v are
    (batch, heads, time, size), or (batch, time, heads * size) with the attributes.
    """
    flat = q.ndim == 3
    if flat:
        q = _heads(node, q, "q_num_heads")
        k, v = (_heads(node, t, "kv_num_heads") for t in (k, v))
    past = 0 if past_key is None else past_key.shape[2]
    if past_key is not None and past_value is not None:
        k = jnp.concatenate([past_key, k], axis=2)
        v = jnp.concatenate([past_value, v], axis=2)
    present = k, v
    if q.shape[1] % k.shape[1]:
        raise ModelError(
            f"Attention node {node.name!r}: {q.shape[1]} query heads cannot share {k.shape[1]} "
            f"key heads"
        )
    repeats = q.shape[1] // k.shape[1]
    k, v = (jnp.repeat(t, repeats, axis=1) if repeats > 1 else t for t in (k, v))
    # the square root on both sides, as the function body has it
    scale = np.sqrt(node.attrs.get("scale") or 1 / np.sqrt(q.shape[-1])).astype(q.dtype)
    scores = jnp.matmul(q * scale, jnp.swapaxes(k * scale, -1, -2))
    raw = scores
    softcap = node.attrs.get("softcap", 0.0)
    if softcap:
        scores = jnp.tanh(scores / softcap) * softcap
    capped = scores
    bias = _bias(node, mask, past, lengths, scores)
    if bias is not None:
        scores = scores + bias
    biased = scores
    precision = node.attrs.get("softmax_precision")
    weights = _softmax(scores if precision is None else scores.astype(dtype_of(jnp, precision)))
    if bias is not None:
        # a row without a key to attend to gives 0
        weights = jnp.where(jnp.all(jnp.isneginf(bias), -1, keepdims=True), 0, weights)
    weights = weights.astype(q.dtype)
    y = jnp.matmul(weights, v)
    if flat:
        y = jnp.swapaxes(y, 1, 2).reshape(y.shape[0], y.shape[2], -1)
    mode = node.attrs.get("qk_matmul_output_mode", 0)
    if mode not in range(4):
        raise ModelError(f"Attention node {node.name!r}: unknown qk_matmul_output_mode {mode}")
    return y, *present, (raw, capped, biased, weights)[mode]


def _heads(node, x, key):
    """(batch, time, heads * size) -> (batch, heads, time, size)."""
    count = node.attrs.get(key, 0)
    if not count or x.shape[-1] % count:
        raise ModelError(
            f"{node.op} node {node.name!r}: {x.shape[-1]} features are not {key} = {count} heads"
        )
    return jnp.swapaxes(x.reshape(*x.shape[:2], count, -1), 1, 2)


def _bias(node, mask, past, lengths, scores):
    """What is added to the scores: 0 and -inf from all masks, (..., query, key); or None."""
    queries, keys = scores.shape[-2:]
    parts = []
    if mask is not None:
        missing = [(0, 0)] * (mask.ndim - 1) + [(0, max(keys - mask.shape[-1], 0))]
        boolean = mask.dtype == np.bool_
        mask = jnp.pad(mask, missing, constant_values=False if boolean else -np.inf)
        mask = _masked(mask, scores.dtype) if boolean else mask.astype(scores.dtype)
        parts.append(mask)
    # the position of the first query among the keys
    if past == 0 and lengths is not None:
        offset = lengths.reshape(-1, 1, 1, 1) - queries
    else:
        offset = jnp.full((1, 1, 1, 1), past, jnp.int32)
    row = jnp.arange(queries, dtype=offset.dtype).reshape(1, 1, -1, 1) + offset
    column = jnp.arange(keys, dtype=offset.dtype).reshape(1, 1, 1, -1)
    left, right = (node.attrs.get(f"{side}_window_size", -1) for side in ("left", "right"))
    if node.attrs.get("is_causal", 0):
        parts.append(_masked(column <= row, scores.dtype))
    if left >= 0:
        parts.append(_masked(row - column <= left, scores.dtype))
    if right >= 0:
        parts.append(_masked(column - row <= right, scores.dtype))
    if lengths is not None:
        parts.append(_masked(column < lengths.reshape(-1, 1, 1, 1), scores.dtype))
    if not parts:
        return None
    total = jnp.zeros((1, 1, 1, 1), scores.dtype)
    for part in parts:
        total = total + part.reshape((1,) * (4 - part.ndim) + part.shape)
    return total


def _masked(allowed, dtype):
    return jnp.where(allowed, jnp.zeros((), dtype), jnp.asarray(-np.inf, dtype))


def _softmax(x):
    """Over the last axis; a row of -inf gives 0."""
    top = jnp.max(x, axis=-1, keepdims=True, initial=-np.inf)
    top = lax.stop_gradient(jnp.where(jnp.isneginf(top), 0, top))
    raised = jnp.exp(x - top)
    total = jnp.sum(raised, axis=-1, keepdims=True)
    return raised / jnp.where(total == 0, 1, total)


@lowering("LinearAttention", since=27)
def linear_attention(node, query, key, value, past_state=None, decay=None, beta=None):
    """https://onnx.ai/onnx/operators/onnx__LinearAttention.html

    S_t = exp(g_t) S_{t-1} + k_t (x) v_t, with v_t <- beta_t (v_t - S^T k_t) under a delta rule;
    o_t = scale q_t S_t. In float32, by a scan over time.
    """
    rule = node.attrs.get("update_rule", "gated_delta")
    wants = {"linear": (False, False), "gated": (True, False)}
    wants |= {"delta": (False, True), "gated_delta": (True, True)}
    if wants.get(rule) != (decay is not None, beta is not None):
        raise ModelError(
            f"LinearAttention node {node.name!r}: update_rule {rule!r} with"
            f"{'' if decay is not None else 'out'} decay and with"
            f"{'' if beta is not None else 'out'} beta"
        )
    heads = node.attrs["kv_num_heads"]
    group = node.attrs["q_num_heads"] // heads
    q = _heads(node, query, "q_num_heads").astype(jnp.float32)
    k, v = (_heads(node, t, "kv_num_heads").astype(jnp.float32) for t in (key, value))
    size = k.shape[-1]
    scale = np.float32(node.attrs.get("scale") or 1 / np.sqrt(size))
    start = (*k.shape[:2], size, v.shape[-1])
    state = jnp.zeros(start, jnp.float32) if past_state is None else past_state.astype(jnp.float32)
    if decay is not None:
        decay = jnp.exp(_heads(node, decay, "kv_num_heads").astype(jnp.float32))
    if beta is not None:
        beta = jnp.swapaxes(beta, 1, 2)[..., None].astype(jnp.float32)

    def step(state, now):
        q, k, v, decay, beta = now
        if decay is not None:
            state = state * decay[..., None]
        if beta is not None:
            v = beta * (v - jnp.einsum("bhdm,bhd->bhm", state, k))
        state = state + k[..., :, None] * v[..., None, :]
        read = jnp.repeat(state, group, axis=1) if group > 1 else state
        return state, scale * jnp.einsum("bhd,bhdm->bhm", q, read)

    times = tuple(None if t is None else jnp.moveaxis(t, 2, 0) for t in (q, k, v, decay, beta))
    state, outputs = lax.scan(step, state, times)
    y = jnp.moveaxis(outputs, 0, 1).reshape(*query.shape[:2], -1)
    kept = query.dtype if past_state is None else past_state.dtype
    return y.astype(query.dtype), state.astype(kept)


@lowering("RotaryEmbedding", since=23)
def rotary_embedding(node, x, cos, sin, position_ids=None):
    """https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html

    (x1, x2) -> (cos x1 - sin x2, sin x1 + cos x2) on halves, or on neighbours if `interleaved`.
    """
    shape = x.shape
    if x.ndim == 4:
        x = jnp.swapaxes(x, 1, 2)
    else:
        count = node.attrs.get("num_heads", 0)
        if not count or x.shape[-1] % count:
            raise ModelError(
                f"RotaryEmbedding node {node.name!r}: {x.shape[-1]} features are not num_heads = "
                f"{count} heads"
            )
        x = x.reshape(*shape[:2], count, -1)
    turned = node.attrs.get("rotary_embedding_dim", 0) or x.shape[-1]
    part, rest = x[..., :turned], x[..., turned:]
    if position_ids is not None:
        cos, sin = (jnp.take(t, position_ids, axis=0) for t in (cos, sin))
    if cos.shape[-1] != turned // 2:
        raise ModelError(
            f"RotaryEmbedding node {node.name!r}: the caches hold {cos.shape[-1]} angles, "
            f"{turned // 2} are needed"
        )
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    if node.attrs.get("interleaved", 0):
        first, second = part[..., 0::2], part[..., 1::2]
    else:
        first, second = jnp.split(part, 2, axis=-1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if node.attrs.get("interleaved", 0):
        part = jnp.stack([real, imaginary], axis=-1).reshape(part.shape)
    else:
        part = jnp.concatenate([real, imaginary], axis=-1)
    y = jnp.concatenate([part, rest], axis=-1)
    return jnp.swapaxes(y, 1, 2) if len(shape) == 4 else y.reshape(shape)
