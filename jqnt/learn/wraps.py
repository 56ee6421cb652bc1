"""What is put around quantizers while they train: more and more of them, or chance."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jqnt.quantizers import Dropped, Stochastic, affine_of
from jqnt.types import QParams, Quantizer

__all__ = ["Wrap", "gradual", "stochastic"]

Wrap = Callable[..., dict[str, Quantizer]]
"""`wrap(qparams, params, *, step, key) -> qparams` at each training step."""


def gradual(steps: int) -> Wrap:
    """Activations are quantized more and more: each value stays float with probability
    1 - t / steps, so that all are quantized from step `steps` on.

    Source: Wei et al. 2022 (QDrop) for the drop; a schedule in place of its constant.
    """

    def wrap(qparams: QParams, params: Any, *, step: Any, key: Any) -> dict[str, Quantizer]:
        left = jnp.clip(1 - step / steps, 0, 1)
        return {
            name: Dropped(q, left, _key(key, name))
            if name not in params and affine_of(q) is not None
            else q
            for name, q in qparams.items()
        }

    return wrap


def stochastic(*, weights: bool = True, activations: bool = False) -> Wrap:
    """Rounding up or down at random, with a fresh draw for each tensor and step; the gradient is
    that of the plain grid, whatever its range is learned by."""

    def wrap(qparams: QParams, params: Any, *, step: Any, key: Any) -> dict[str, Quantizer]:
        def drawn(name: str, q: Any) -> Quantizer:
            grid = affine_of(q)
            # Of a bias the 32-bit grid is finer than float32: there is nothing to draw.
            wide = name in params and jnp.ndim(params[name]) < 2
            wanted = weights if name in params else activations
            return q if grid is None or wide or not wanted else Stochastic(grid, _key(key, name))

        return {name: drawn(name, q) for name, q in qparams.items()}

    return wrap


def _key(key: Any, name: str) -> Any:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
