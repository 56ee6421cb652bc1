"""What a user should be warned of: too few calibration samples, data unlike those calibrated on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.quantizers import Affine, grid
from jqnt.types import Apply, Params, QParams

__all__ = ["FEWEST", "Outside", "outside_range", "too_few"]

FEWEST = 200
"""Calibration samples that tools ask for at the least: 500 to 1000 are better."""


@dataclass(frozen=True)
class Outside:
    """A tensor, the share of its values that its grid clips, and the ranges of both."""

    tensor: str
    share: float
    seen: tuple[float, float]
    covered: tuple[float, float]

    def __str__(self) -> str:
        return (
            f"{100 * self.share:.2g} % of {self.tensor!r} lies outside its calibrated range: "
            f"[{self.seen[0]:.4g}, {self.seen[1]:.4g}] seen, "
            f"[{self.covered[0]:.4g}, {self.covered[1]:.4g}] covered"
        )


def too_few(samples: int) -> str | None:
    """The warning for fewer than 200 calibration samples, or None."""
    if samples >= FEWEST:
        return None
    return f"{samples} calibration samples; give at least {FEWEST} that cover the use"


def outside_range(
    apply: Apply,
    params: Params,
    qparams: QParams,
    batches: Iterable[Mapping[str, Any]],
    *,
    share: float = 1e-3,
) -> tuple[Outside, ...]:
    """The activations of which more than `share` of the values lie more than half a step outside
    their grid, on `batches` in the float network; the worst first. Grids of one scale only.
    """
    grids = {
        name: quantizer
        for name, quantizer in qparams.items()
        if name not in params and isinstance(quantizer, Affine) and jnp.ndim(quantizer.scale) == 0
    }
    if not grids:
        return ()
    limits = {name: _limits(quantizer) for name, quantizer in grids.items()}

    @jax.jit
    def look(params: Params, batch: Mapping[str, Any]) -> dict[str, tuple[Any, Any, Any, Any]]:
        values = apply(params, {}, batch, want=sorted(grids))
        return {
            name: (
                jnp.mean((x < limits[name][2]) | (x > limits[name][3]), dtype=jnp.float32),
                jnp.float32(x.size),
                jnp.min(x),
                jnp.max(x),
            )
            for name, x in values.items()
        }

    seen: dict[str, np.ndarray] = {}
    for batch in batches:
        for name, (part, size, low, high) in jax.device_get(look(params, batch)).items():
            new = np.asarray([part * size, size, low, high], np.float64)
            old = seen.get(name, np.asarray([0, 0, np.inf, -np.inf]))
            low, high = min(old[2], new[2]), max(old[3], new[3])
            seen[name] = np.asarray([old[0] + new[0], old[1] + new[1], low, high])
    found = [
        Outside(name, out / total, (low, high), limits[name][:2])
        for name, (out, total, low, high) in seen.items()
        if out > share * total
    ]
    return tuple(sorted(found, key=lambda row: -row.share))


def _limits(quantizer: Affine) -> tuple[float, float, float, float]:
    """(low, high) of the grid, and half a step beyond them."""
    scale, zero, qmin, qmax = (float(v) for v in grid(quantizer, ()))
    low, high = ((q - zero + 0.5 * quantizer.shifted) * scale for q in (qmin, qmax))
    return low, high, low - scale / 2, high + scale / 2
