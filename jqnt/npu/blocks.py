"""Arrays of multipliers that work block by block (Ethos-U), and the block a compiler would take."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
from flax import struct

from jqnt.npu.workload import Workload
from jqnt.types import Leaf

__all__ = ["BlockArray", "Blocks", "choose_blocks", "nest_of"]


@dataclass(frozen=True)
class BlockArray:
    """What is fixed about an array that computes its result block by block.

    `macs` multiply-accumulates a cycle at 8 bits make a block of `micro` results (height, width,
    depth; one of several shapes) at a time, over `inner_first` channels of the input, or over
    `inner_kernel` channels and `taps` of the kernel at once where that fills it better, counted in
    a `tap_granule` (taps, least remainder). Inputs come from a memory of `input_bytes`, results
    accumulate in one of `accumulators` words; with `shared` both are banks of `bank` bytes of the
    first, in multiples of a granule each. `output_cycles` are cycles per result of products and
    windows, `add_cycles` of elementwise work. Feature maps lie in the DRAM or, with
    `features_on_chip`, in the on-chip memory. A memory has a longest burst (bytes) and latencies
    (cycles) to read and to write, that of features a peak rate in bytes a cycle; `channels` are
    bytes a cycle at most for inputs, weights, scales and results, 0 without a limit.
    """

    macs: int
    micro: tuple[tuple[int, int, int], ...]
    block_max: tuple[int, int, int]
    cores: int
    accumulators: int
    input_bytes: int
    shared: bool
    bank: int
    input_granule: int
    result_granule: int
    inner_first: int
    inner_kernel: int
    taps: int
    tap_granule: tuple[int, int]
    output_cycles: float
    add_cycles: float
    write_cores: int
    whole_depth: bool
    features_on_chip: bool
    feature_memory: tuple[int, int, int]
    feature_rate: float
    weight_memory: tuple[int, int, int]
    channels: tuple[float, float, float, float]
    zero_bits: float


@struct.dataclass
class Blocks:
    """Per group: the block of results (height, width, depth), the block of inputs that feeds it,
    the microblock's height and width, and whether the kernel goes first."""

    height: Leaf
    width: Leaf
    depth: Leaf
    in_height: Leaf
    in_width: Leaf
    in_depth: Leaf
    micro_height: Leaf
    micro_width: Leaf
    kernel_first: Leaf


@dataclass(frozen=True)
class Nest:
    """A group as the array sees it: `kind` is conv, depthwise, dense, pool or elementwise."""

    kind: str
    in_height: int
    in_width: int
    in_depth: int
    height: int
    width: int
    depth: int
    kernel: tuple[int, int]
    stride: tuple[int, int]


def nest_of(workload: Workload, index: int) -> Nest:
    """The loop nest of a group; work that is no product and no window is elementwise.

    Elementwise results of under eight channels are laid out as rows of width times channels.
    """
    d = {k: int(np.asarray(v)[index]) for k, v in vars(workload.dims).items()}
    kind = workload.kinds[index]
    depth = d["groups"] * d["out_channels"]
    inner = d["groups"] * d["in_channels"]
    if kind in ("vector", "move", "view"):
        window = "pool" in workload.works[index]
        if "reduce" in workload.works[index]:
            size = d["height"], d["width"]
            return Nest("pool", *size, depth, 1, 1, depth, size, (1, 1))
        kind = "pool" if window else "elementwise"
        inner = depth
    size = d["height"], d["width"]
    if kind == "elementwise" and depth < 8:
        return Nest(kind, 1, size[0], size[1] * depth, 1, size[0], size[1] * depth, (1, 1), (1, 1))
    kind = {"matmul": "dense"}.get(kind, kind)
    kernel, stride = (
        (d["kernel_height"], d["kernel_width"]),
        (d["stride_height"], d["stride_width"]),
    )
    return Nest(kind, d["in_height"], d["in_width"], inner, *size, depth, kernel, stride)


def choose_blocks(workload: Workload, array: BlockArray, activation_bits: int) -> Blocks:
    """The block of each group: the one that fetches the fewest inputs and weights per result.

    The criterion and the limits are those of Vela's scheduler; ties go to the first.
    """
    rows = [
        _best(nest_of(workload, index), array, activation_bits)
        for index in range(len(workload.groups))
    ]
    return Blocks(*(np.asarray(column, np.float32) for column in zip(*rows, strict=True)))


@lru_cache(maxsize=4096)
def _best(nest: Nest, array: BlockArray, bits: int) -> tuple[int, ...]:
    micro_h, micro_w, micro_d = min(array.micro, key=lambda m: _waste(nest, m))
    kernel_first = nest.kind == "conv" and _kernel_first(nest, array, bits)
    equal = nest.kind in ("depthwise", "pool", "elementwise")
    inner = array.inner_kernel if kernel_first else array.inner_first
    in_depth = _up(min(nest.in_depth, inner * 8 // bits), 8)
    top_h, top_w, _ = array.block_max
    heights = np.arange(micro_h, _up(min(nest.height, top_h), micro_h) + 1, micro_h)
    widths = np.arange(micro_w, _up(min(nest.width, top_w), micro_w) + 1, micro_w)
    depths = _depths(nest, array, micro_d)
    if nest.kind == "elementwise" and array.whole_depth:
        depths = depths[-1:]
    d, h, w = (x.ravel() for x in np.meshgrid(depths, heights, widths, indexing="ij"))
    taps = (1, 1) if nest.kind == "dense" else tuple(min(k, 8) for k in nest.kernel)
    in_h = _up((h - 1) * nest.stride[0] + taps[0], micro_h)
    in_w = _up((w - 1) * nest.stride[1] + taps[1], micro_w)
    in_d = d if equal else np.full_like(d, in_depth)
    fits = _fits(nest, array, bits, (h, w, d), (in_h, in_w, in_d), equal)
    if not fits.any():
        fits[0] = True
    cost = _cost(nest, (h, w, d), (in_h, in_w, in_d), equal)
    at = _chosen(nest, np.where(fits, cost, np.inf), (h, w), (in_h, in_w))
    return (
        *(int(x[at]) for x in (h, w, d, in_h, in_w, in_d)),
        micro_h,
        micro_w,
        int(kernel_first),
    )


def _chosen(nest: Nest, cost: np.ndarray, block, inputs) -> int:
    """The cheapest block; of equally cheap ones a small one that covers most of the input."""
    (h, w), (in_h, in_w) = block, inputs
    equal = cost == cost.min()
    covered = np.minimum(nest.in_height, in_h) * np.minimum(nest.in_width, in_w)
    small = np.flatnonzero(equal & (h <= 4) & (w <= 4))
    small = small[small > np.argmax(equal)]
    if not len(small):
        return int(np.argmax(equal))
    return int(small[covered[small] == covered[small].max()][-1])


def _cost(nest: Nest, block, inputs, equal: bool) -> np.ndarray:
    """Inputs and weights fetched per result; half where both buffers hold the whole input."""
    (h, w, d), (in_h, in_w, in_d) = block, inputs
    results = nest.height * nest.width * nest.depth
    if nest.kind == "elementwise":
        return results / (h * w * d)
    across = np.ceil(nest.height / h) * np.ceil(nest.width / w)
    weights = prod(nest.kernel) * nest.in_depth * across
    if nest.kind not in ("conv", "depthwise"):
        weights = 0 * across
    elif nest.kind == "conv":
        weights = weights * nest.depth
    repeats = np.ceil(nest.kernel[0] / 8) * np.ceil(nest.kernel[1] / 8)
    fetched = in_h * in_w * nest.in_depth * repeats * (nest.height / h) * (nest.width / w)
    if not equal:
        fetched = fetched * np.ceil(nest.depth / d)
    whole = nest.in_height * nest.in_width * nest.in_depth < 2 * in_h * in_w * in_d
    return (fetched + weights) / results * np.where(whole, 0.5, 1.0)


def _fits(nest: Nest, array: BlockArray, bits: int, block, inputs, equal: bool) -> np.ndarray:
    """Whether inputs (twice) and accumulators fit, in one memory of banks or each in its own."""
    (h, w, d), (in_h, in_w, in_d) = block, inputs
    share = array.cores if equal else 1
    held = in_h * in_w * _up(np.ceil(in_d / share) * bits / 8, 8)
    sums = np.minimum(h, max(nest.height, 1)) * w
    if not array.shared:
        whole = _up(nest.in_height, 2) * _up(nest.in_width, 2) * _up(nest.in_depth, 8) * bits / 8
        inside = np.minimum(in_h * in_w * in_d * bits / 8, whole) <= array.input_bytes
        return inside & (h * w * d <= array.accumulators)
    held = _up(np.ceil(held / array.bank) * 2, array.input_granule)
    if nest.kind == "elementwise":
        return 2 * held <= array.input_bytes // array.bank
    acc = sums * _up(np.ceil(d / array.cores), 8) * 4
    acc = _up(np.ceil(acc / array.bank) * 2, array.result_granule)
    return held + acc <= array.input_bytes // array.bank


def _kernel_first(nest: Nest, array: BlockArray, bits: int) -> bool:
    """Whether several taps of few channels fill the array better than one of many."""
    inner = array.inner_kernel // 2 if array.shared else array.inner_kernel
    if array.shared and nest.in_depth <= inner:
        return True
    taps, (at_once, least) = prod(nest.kernel), array.tap_granule
    rounded = taps // at_once * at_once
    rounded += max(taps % at_once, least) if taps % at_once or least < at_once else 0
    kernel = nest.in_depth / _up(nest.in_depth, inner) * taps / rounded
    return bool(kernel >= nest.in_depth / _up(nest.in_depth, array.inner_first * 8 // bits))


def _depths(nest: Nest, array: BlockArray, micro: int) -> np.ndarray:
    """Depths to try: multiples of 16 short of the whole depth, of the microblock beyond."""
    top = _up(min(nest.depth, array.block_max[2]), micro)
    depth, found = max(micro, min(top, 16)), []
    depth = _up(depth, 16) if depth < nest.depth else depth
    while depth <= top:
        found.append(depth)
        depth += micro
        depth = _up(depth, 16) if depth < nest.depth else depth
    return np.asarray(found or [top])


def _waste(nest: Nest, micro: tuple[int, int, int]) -> int:
    shape = (nest.height, nest.width, nest.depth)
    return prod(_up(s, m) for s, m in zip(shape, micro, strict=True)) - prod(shape)


def _up(x, granule):
    return -(-x // granule) * granule
