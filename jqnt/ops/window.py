"""Windows that slide over spatial axes: attributes, padding, output sizes, and the sliding."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jqnt.errors import ModelError
from jqnt.graph.ir import Node

__all__ = ["Window", "output_sizes", "per_axis", "places", "slide", "taps", "window"]


_MOST = 1024
"""How many times more padding than data and window there may be."""

_TAPS = 64
"""Windows longer than this along an axis go to XLA as they are."""


class Window(NamedTuple):
    """One entry per spatial axis; `pads` are (before, after)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    @property
    def spans(self) -> tuple[int, ...]:
        """How many inputs each axis of the window covers: (kernel - 1) * dilation + 1."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def window(
    node: Node, sizes: tuple[int, ...], kernel: tuple[int, ...], transposed: bool = False
) -> Window:
    """The window of a convolution or pooling node over spatial `sizes`.

    Padding follows auto_pad: SAME_UPPER and SAME_LOWER give ceil(size / stride) outputs, the
    odd pixel after or before; VALID none; NOTSET the attribute `pads`. A stride past the data
    is cut to what gives the same single window, unless the node is `transposed`. Raises
    ModelError where an attribute has another number of axes, or a size is not positive.
    https://onnx.ai/onnx/operators/onnx__Conv.html
    """
    rank = len(sizes)
    strides = per_axis(node, "strides", rank, 1)
    dilations = per_axis(node, "dilations", rank, 1)
    if len(kernel) != rank or min((*kernel, *strides, *dilations), default=1) < 1:
        raise ModelError(
            f"{node.op} node {node.name!r}: kernel {list(kernel)}, strides {list(strides)} and "
            f"dilations {list(dilations)} must be positive, one for each of {rank} axes"
        )
    view = Window(tuple(kernel), strides, dilations, ((0, 0),) * rank)
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for size, span, stride in zip(sizes, view.spans, strides, strict=True):
            total = max((-(-size // stride) - 1) * stride + span - size, 0)
            small = total // 2
            pads.append((small, total - small) if auto == "SAME_UPPER" else (total - small, small))
    elif auto in ("VALID", "NOTSET"):
        flat = tuple(node.attrs.get("pads", ())) if auto == "NOTSET" else ()
        flat = flat or (0,) * (2 * rank)
        if len(flat) != 2 * rank:
            raise ModelError(
                f"{node.op} node {node.name!r}: pads {list(flat)} must have {2 * rank} entries"
            )
        pads = list(zip(flat[:rank], flat[rank:], strict=True))
    else:
        raise ModelError(f"{node.op} node {node.name!r}: unknown auto_pad {auto!r}")
    for size, k, (before, after) in zip(sizes, kernel, pads, strict=True):
        if max(abs(before), abs(after)) > _MOST * (size + k):
            raise ModelError(
                f"{node.op} node {node.name!r}: pads {before} and {after} around {size} are no "
                f"padding"
            )
    if not transposed:
        # XLA's 64-bit arithmetic overflows on absurd strides without a word
        room = (
            max(size + before + after, 0) for size, (before, after) in zip(sizes, pads, strict=True)
        )
        strides = tuple(min(s, r + 1) for s, r in zip(strides, room, strict=True))
    dilations = tuple(d if k > 1 else 1 for k, d in zip(kernel, dilations, strict=True))
    return view._replace(pads=tuple(pads), strides=strides, dilations=dilations)


def output_sizes(
    node: Node, view: Window, sizes: tuple[int, ...], ceil: bool = False
) -> tuple[int, ...]:
    """floor((size + pads - span) / stride) + 1 per axis; `ceil` rounds up, but no window starts
    in the padding after the data. ModelError where the window is larger than the data."""
    out = []
    for size, span, stride, (before, after) in zip(
        sizes, view.spans, view.strides, view.pads, strict=True
    ):
        room = size + before + after - span
        count = (-(-room // stride) if ceil else room // stride) + 1
        if ceil and (count - 1) * stride >= size + before:
            count -= 1
        if count < 1:
            raise ModelError(
                f"{node.op} node {node.name!r}: a window over {span} does not fit into "
                f"{size} + {before} + {after}"
            )
        out.append(count)
    return tuple(out)


def slide(
    x: Any,
    view: Window,
    out: tuple[int, ...],
    combine: Callable[[Any, Any], Any],
    fill: Any,
) -> Any:
    """`combine` (max, sum) over each window of a channels-last array, outside it `fill`.

    Axis by axis: a window of k x k costs 2 k shifted slices, which XLA fuses; its own
    reduce_window is a naive loop on the CPU.
    """
    for i, count in enumerate(out):
        axis = i + 1
        size, k, stride, dilation = (
            x.shape[axis],
            view.kernel[i],
            view.strides[i],
            view.dilations[i],
        )
        before = view.pads[i][0]
        after = (count - 1) * stride + view.spans[i] - size - before
        if k > _TAPS:
            x = _reduce(x, axis, (k, stride, dilation, before, after), combine, fill)
            continue
        x = _pad(x, axis, before, after, fill)
        shifted = [
            lax.slice_in_dim(x, j * dilation, j * dilation + (count - 1) * stride + 1, stride, axis)
            for j in range(k)
        ]
        x = shifted[0]
        for tap in shifted[1:]:
            x = combine(x, tap)
    return x


def taps(x: Any, view: Window, out: tuple[int, ...], fill: Any) -> Iterator[Any]:
    """For each element of the window, in C order, what it sees: an array of sizes `out`."""
    widths = [
        (before, (count - 1) * stride + span - size - before, 0)
        for size, count, stride, span, (before, _) in zip(
            x.shape[1:-1], out, view.strides, view.spans, view.pads, strict=True
        )
    ]
    if any(w[:2] != (0, 0) for w in widths):
        x = lax.pad(x, jnp.asarray(fill, x.dtype), [(0, 0, 0), *widths, (0, 0, 0)])
    yield from places(x, view)


def places(x: Any, view: Window) -> list[Any]:
    """`taps` of an array, of numpy too, that has its border already: windows that fit into it."""
    counts = [
        (size - span) // stride + 1
        for size, span, stride in zip(x.shape[1:-1], view.spans, view.strides, strict=True)
    ]
    found = []
    for tap in product(*map(range, view.kernel)):
        starts = [j * d for j, d in zip(tap, view.dilations, strict=True)]
        picks = [
            slice(start, start + (n - 1) * stride + 1, stride)
            for start, n, stride in zip(starts, counts, view.strides, strict=True)
        ]
        found.append(x[(slice(None), *picks)])
    return found


def per_axis(node: Node, key: str, rank: int, default: int) -> tuple[int, ...]:
    """A list attribute with one entry per spatial axis."""
    values = tuple(node.attrs.get(key, ())) or (default,) * rank
    if len(values) != rank:
        raise ModelError(
            f"{node.op} node {node.name!r}: {key} {list(values)} must have {rank} entries"
        )
    return values


def _reduce(
    x: Any, axis: int, numbers: tuple[int, ...], combine: Callable[[Any, Any], Any], fill: Any
) -> Any:
    def along(value: Any, other: Any) -> tuple[Any, ...]:
        return tuple(value if d == axis else other for d in range(x.ndim))

    k, stride, dilation, before, after = numbers
    return lax.reduce_window(
        x,
        jnp.asarray(fill, x.dtype),
        lax.max if combine is jnp.maximum else lax.add,
        along(k, 1),
        along(stride, 1),
        along((before, after), (0, 0)),
        window_dilation=along(dilation, 1),
    )


def _pad(x: Any, axis: int, before: int, after: int, fill: Any) -> Any:
    if not before and not after:
        return x
    widths = [(before, after, 0) if d == axis else (0, 0, 0) for d in range(x.ndim)]
    return lax.pad(x, jnp.asarray(fill, x.dtype), widths)
