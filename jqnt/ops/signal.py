"""Signals: Fourier transforms, windows, mel filters."""

import numpy as np

from jqnt.errors import ModelError
from jqnt.ops.namespace import axis_of, dtype_of, namespace
from jqnt.ops.registry import lowering, static

__all__ = []


@lowering("DFT", since=17, static=(1,))
def dft_17(node, x, length=None):
    """https://onnx.ai/onnx/operators/onnx__DFT.html (the axis is an attribute)"""
    return _transformed(node, x, length, node.attrs.get("axis", 1))


@lowering("DFT", since=20, static=(1, 2))
def dft(node, x, length=None, axis=None):
    """https://onnx.ai/onnx/operators/onnx__DFT.html"""
    axis = -2 if axis is None else int(static(node, "the axis", axis).reshape(()))
    return _transformed(node, x, length, axis)


def _transformed(node, x, length, axis):
    xp = namespace(x)
    axis = axis_of(node, axis, x.ndim)
    if axis == x.ndim - 1 or x.shape[-1] not in (1, 2):
        raise ModelError(
            f"DFT node {node.name!r}: axis {axis} of shape {x.shape}; the last axis holds the real "
            f"part, or real and imaginary part"
        )
    inverse, onesided = (bool(node.attrs.get(k, 0)) for k in ("inverse", "onesided"))
    count = None if length is None else int(static(node, "the length", length).reshape(()))
    signal = _complex(xp, x)
    if inverse and onesided:
        return xp.fft.irfft(signal, n=count, axis=axis)[..., None].astype(x.dtype)
    if inverse:
        result = xp.fft.ifft(signal, n=count, axis=axis)
    else:
        result = _spectrum(xp, signal, x.shape[-1] == 1, onesided, count, axis)
    return xp.stack([result.real, result.imag], axis=-1).astype(x.dtype)


def _spectrum(xp, signal, is_real, onesided, count, axis):
    """The transform of a signal; of a real one it is computed from half, so exactly Hermitian."""
    count = signal.shape[axis] if count is None else count
    whole = (slice(None),) * axis
    if not is_real:
        result = xp.fft.fft(signal, n=count, axis=axis)
        return result[(*whole, slice(count // 2 + 1))] if onesided else result
    half = xp.fft.rfft(signal.real, n=count, axis=axis)
    if onesided:
        return half
    mirrored = xp.flip(half[(*whole, slice(1, (count + 1) // 2))], axis)
    return xp.concatenate([half, xp.conj(mirrored)], axis=axis)


def _complex(xp, x):
    """(..., 1 or 2) of any float type -> complex (...)."""
    wide = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
    return wide[..., 0] + (1j * wide[..., 1] if x.shape[-1] == 2 else 0j)


@lowering("STFT", since=17, static=(1, 3))
def stft(node, x, frame_step, window=None, frame_length=None):
    """https://onnx.ai/onnx/operators/onnx__STFT.html"""
    xp = namespace(x, window)
    if frame_length is not None:
        length = int(static(node, "the frame length", frame_length).reshape(()))
    else:
        length = x.shape[1] if window is None else window.shape[0]
    step = int(static(node, "the frame step", frame_step).reshape(()))
    if step < 1 or not 1 <= length <= x.shape[1]:
        raise ModelError(
            f"STFT node {node.name!r}: frames of {length} in steps of {step} over a signal of "
            f"{x.shape[1]}"
        )
    starts = np.arange(1 + (x.shape[1] - length) // step) * step
    frames = xp.take(x, starts[:, None] + np.arange(length)[None, :], axis=1)
    if window is not None:
        frames = frames * xp.reshape(window, (1, 1, -1, 1)).astype(x.dtype)
    onesided = bool(node.attrs.get("onesided", 1))
    result = _spectrum(xp, _complex(xp, frames), x.shape[-1] == 1, onesided, length, 2)
    return xp.stack([result.real, result.imag], axis=-1).astype(x.dtype)


def _window(op, coefficients):
    """sum_k a_k cos(2 pi k n / N), N the size, less one for a symmetric window."""

    def function(node, size):
        count = int(static(node, "the size", size).reshape(()))
        period = max(count if node.attrs.get("periodic", 1) else count - 1, 1)
        angle = 2 * np.pi * np.arange(count) / period
        values = sum(a * np.cos(k * angle) for k, a in enumerate(coefficients))
        return np.asarray(values).astype(dtype_of(np, node.attrs.get("output_datatype", 1)))

    function.__name__ = op.lower()
    lowering(op, since=17, static=(0,))(function)


_window("BlackmanWindow", (0.42, -0.5, 0.08))
_window("HammingWindow", (25 / 46, -21 / 46))
_window("HannWindow", (0.5, -0.5))


@lowering("MelWeightMatrix", since=17, static=(0, 1, 2, 3, 4))
def mel_weight_matrix(node, bins, length, rate, low, high):
    """https://onnx.ai/onnx/operators/onnx__MelWeightMatrix.html"""
    names = ("the bins", "the length", "the rate", "the lower edge", "the upper edge")
    given = zip(names, (bins, length, rate, low, high), strict=True)
    bins, length, rate, low, high = (static(node, n, v).reshape(()).item() for n, v in given)
    low, high = (2595 * np.log10(1 + edge / 700) for edge in (low, high))
    points = low + np.arange(bins + 2) * (high - low) / (bins + 2)
    hertz = 700 * (10 ** (points / 2595) - 1)
    places = np.floor((length + 1) * hertz / rate).astype(np.int64)
    left, centre, right = places[:-2], places[1:-1], places[2:]
    row = np.arange(length // 2 + 1)[:, None]
    rising = (row - left) / np.maximum(centre - left, 1)
    falling = (right - row) / np.maximum(right - centre, 1)
    weights = np.where((row >= left) & (row <= centre) & (centre > left), rising, 0.0)
    weights = np.where((row == centre) & (centre == left), 1.0, weights)
    weights = np.where((row >= centre) & (row < right), falling, weights)
    return weights.astype(dtype_of(np, node.attrs.get("output_datatype", 1)))
