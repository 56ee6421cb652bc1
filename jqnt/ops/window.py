"""Windows that slide over spatial axes: attributes, padding, output sizes."""

from typing import NamedTuple

from jqnt.errors import ModelError
from jqnt.graph.ir import Node

__all__ = ["Window", "window"]


class Window(NamedTuple):
    """One entry per spatial axis; `pads` are (before, after)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]


def window(node: Node, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """The window of a convolution or pooling node over spatial `sizes`.

    Padding follows auto_pad: SAME_UPPER and SAME_LOWER give ceil(size / stride) outputs, the
    odd pixel after or before; VALID none; NOTSET the attribute `pads`. Raises ModelError where
    an attribute has another number of axes, or a size is not positive.
    https://onnx.ai/onnx/operators/onnx__Conv.html
    """
    rank = len(sizes)
    strides = _per_axis(node, "strides", rank, 1)
    dilations = _per_axis(node, "dilations", rank, 1)
    if len(kernel) != rank or min((*kernel, *strides, *dilations), default=1) < 1:
        raise ModelError(
            f"{node.op} node {node.name!r}: kernel {list(kernel)}, strides {list(strides)} and "
            f"dilations {list(dilations)} must be positive, one for each of {rank} axes"
        )
    auto = node.attrs.get("auto_pad", "NOTSET")
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for size, span, stride in zip(sizes, spans, strides, strict=True):
            total = max((-(-size // stride) - 1) * stride + span - size, 0)
            small = total // 2
            pads.append((small, total - small) if auto == "SAME_UPPER" else (total - small, small))
    elif auto in ("VALID", "NOTSET"):
        flat = node.attrs.get("pads", ()) if auto == "NOTSET" else ()
        flat = flat or (0,) * (2 * rank)
        if len(flat) != 2 * rank:
            raise ModelError(
                f"{node.op} node {node.name!r}: pads {list(flat)} must have {2 * rank} entries"
            )
        pads = list(zip(flat[:rank], flat[rank:], strict=True))
    else:
        raise ModelError(f"{node.op} node {node.name!r}: unknown auto_pad {auto!r}")
    return Window(tuple(kernel), strides, dilations, tuple(pads))


def _per_axis(node: Node, key: str, rank: int, default: int) -> tuple[int, ...]:
    values = tuple(node.attrs.get(key, ())) or (default,) * rank
    if len(values) != rank:
        raise ModelError(
            f"{node.op} node {node.name!r}: {key} {list(values)} must have {rank} entries"
        )
    return values
