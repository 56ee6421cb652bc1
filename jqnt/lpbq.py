"""Block scales as a float per channel times a small integer per block (LPBQ)."""

import numpy as np

from jqnt.errors import UnsupportedError

__all__ = ["MULTIPLE_BITS", "factor"]

MULTIPLE_BITS = 4
"""The integers are 1 to 2^4."""


def factor(scale: np.ndarray, channel_axis: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(one float32 per channel, with `scale`'s rank; integers of its shape) whose product it is.

    scale = channel * multiple, to the last bit, multiples from 1 to 16; the smallest that do.
    Raises UnsupportedError, naming the tensor, where there are none: calibrate such a weight with
    scales that are products.
    """
    rows = np.moveaxis(np.asarray(scale, np.float32), channel_axis, 0)
    flat = rows.reshape(rows.shape[0], -1)
    top = flat.max(1)
    channel = np.zeros(len(flat), np.float32)
    multiples = np.zeros(flat.shape, np.int64)
    for largest in range(2**MULTIPLE_BITS, 0, -1):
        for unit in _near(top, largest):
            counts = np.rint(flat / unit[:, None]).astype(np.int64)
            product = counts.astype(np.float32) * unit[:, None]
            fits = (product == flat).all(1) & (counts >= 1).all(1)
            channel = np.where(fits, unit, channel)
            multiples = np.where(fits[:, None], counts, multiples)
    if not channel.all():
        row = int(np.flatnonzero(channel == 0)[0])
        raise UnsupportedError(
            f"tensor {name!r}: the block scales of channel {row} are no multiples, 1 to "
            f"{2**MULTIPLE_BITS}, of one number, so LPBQ cannot hold them"
        )
    shape = [1] * scale.ndim
    shape[channel_axis] = len(flat)
    return channel.reshape(shape), np.moveaxis(multiples.reshape(rows.shape), 0, channel_axis)


def _near(top: np.ndarray, largest: int) -> list[np.ndarray]:
    """float32 units of which `largest` make `top`: the quotient and its neighbours."""
    unit = (top / np.float32(largest)).astype(np.float32)
    return [np.nextafter(unit, np.float32(0)), np.nextafter(unit, np.float32(np.inf)), unit]
