"""How near a quantized network stays to the float one, tensor by tensor."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.errors import DataError

__all__ = ["Quality", "quality_of", "signal_sums", "tensor_quality"]

Run = Callable[[dict[str, Any]], Mapping[str, Any]]
"""`run(inputs) -> {tensor name -> array}`."""


@dataclass(frozen=True)
class Quality:
    """One tensor's signal-to-quantization-noise ratio in dB, and its cosine to the float one.

    sqnr_db = 10 log10(sum r^2 / sum (r - v)^2), infinite where nothing differs;
    cosine = <r, v> / (|r| |v|), both over all elements of all samples.
    """

    sqnr_db: float
    cosine: float


def tensor_quality(
    reference: Run, run: Run, tensors: Sequence[str], batches: Iterable[Mapping[str, Any]]
) -> dict[str, Quality]:
    """The quality of each of `tensors`, which both runs must give; batches are streamed.

    Raises DataError if there are no batches.
    """
    total: Any = None
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        wanted, found = reference(inputs), run(inputs)
        sums = _sums({n: wanted[n] for n in tensors}, {n: found[n] for n in tensors})
        # Sums over a batch are float32, sums over batches float64 on the host.
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(sums))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    if total is None:
        raise DataError("no batches to compare the networks on; at least one is needed")
    return {name: quality_of(*map(float, total[name])) for name in tensors}


@jax.jit
def _sums(reference: dict[str, Any], value: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Per tensor: sum r^2, sum v^2, sum r v, sum (r - v)^2."""
    return {name: signal_sums(reference[name], value[name]) for name in reference}


def signal_sums(r: Any, v: Any) -> tuple[Any, ...]:
    """sum r^2, sum v^2, sum r v, sum (r - v)^2 over all elements, float32."""
    r, v = jnp.ravel(r).astype(jnp.float32), jnp.ravel(v).astype(jnp.float32)
    d = r - v
    return tuple(jnp.sum(a * b) for a, b in ((r, r), (v, v), (r, v), (d, d)))


def quality_of(rr: float, vv: float, rv: float, noise: float) -> Quality:
    """From sum r^2, sum v^2, sum r v and sum (r - v)^2."""
    if noise == 0:
        return Quality(float("inf"), 1.0)
    sqnr = 10 * np.log10(rr / noise) if rr > 0 else -np.inf
    norms = np.sqrt(rr * vv)
    return Quality(float(sqnr), float(np.clip(rv / norms, -1, 1)) if norms > 0 else 0.0)
