"""By how many codes two versions of a quantized tensor differ, and by what share of its size."""

from dataclasses import dataclass

import numpy as np

from jqnt.encodings import Encoding

__all__ = ["Steps", "steps_between"]


@dataclass(frozen=True)
class Steps:
    """Of `count` elements, the shares that differ by one code and more (`one`), by two and more
    (`two`), the largest difference in codes, and the largest relative error

        max |a - b| / max |a|.
    """

    count: int
    one: float
    two: float
    most: int
    relative: float

    def merged(self, other: "Steps") -> "Steps":
        """Both together."""
        count = self.count + other.count
        one, two = (
            (a * self.count + b * other.count) / count
            for a, b in ((self.one, other.one), (self.two, other.two))
        )
        relative = max(self.relative, other.relative)
        return Steps(count, one, two, max(self.most, other.most), relative)


def steps_between(a: np.ndarray, b: np.ndarray, encoding: Encoding) -> Steps:
    """How `b` differs from `a`, both real values of a tensor on the grid of `encoding`."""
    assert encoding.scale is not None
    scale = encoding.expand(encoding.scale, a.shape)
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    codes = np.rint(difference / scale)
    top = float(np.abs(a).max(initial=0))
    return Steps(
        int(a.size),
        float((codes >= 1).mean()) if a.size else 0.0,
        float((codes >= 2).mean()) if a.size else 0.0,
        int(codes.max(initial=0)),
        float(difference.max(initial=0)) / top if top else 0.0,
    )
