"""Cycles and traffic of groups on an array that works block by block (Ethos-U).

Formulas as in Arm's Vela 5.2 (Apache-2.0), its performance model of Ethos-U55, U65 and U85: a
group takes as long as the slowest of the array, the feature memory and the weight memory.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jqnt.errors import ConfigError
from jqnt.npu.blocks import BlockArray, Blocks
from jqnt.npu.devices import Device
from jqnt.npu.pairs import Pair
from jqnt.npu.smooth import Calculus
from jqnt.npu.work import VECTOR_WORK
from jqnt.npu.workload import Workload
from jqnt.types import Leaf

__all__ = ["ArrayTimes", "array_times"]


class ArrayTimes(NamedTuple):
    """Per group: seconds of the array and of the memories, bytes of weights and of activations."""

    array_s: Float[Array, " groups"]
    memory_s: Float[Array, " groups"]
    weight_bytes: Float[Array, " groups"]
    activation_bytes: Float[Array, " groups"]


class _Groups(NamedTuple):
    """The loop nests of all groups as the array sees them (`nest_of`), their kinds, their blocks
    cut to size, and whether inputs and results lie in plain rows (NHWC) or in bricks of 16."""

    kinds: np.ndarray
    in_depth: Array
    height: Array
    width: Array
    depth: Array
    kernel_height: Array
    kernel_width: Array
    blocks: Blocks
    held: tuple[Array, Array, Array]
    fed: tuple[Array, Array, Array]
    plain_input: np.ndarray
    plain_result: np.ndarray
    bits: int


def array_times(
    workload: Workload,
    device: Device,
    pair: Pair,
    blocks: Blocks,
    free: tuple[str, ...],
    calculus: Calculus,
) -> ArrayTimes:
    """Cycles over clock, bytes over bandwidth; tails that are not `free` run on their own."""
    array = device.array
    if array is None:
        raise ConfigError(f"device {device.name!r} describes no block array")
    g = _groups(workload, blocks, pair.activation_bits)
    cycles = _array_cycles(g, array, calculus)
    read, written, scales, fetches = _bytes(g, array, calculus)
    product = np.isin(g.kinds, ("conv", "depthwise", "dense"))
    encoded = jnp.where(product, _encoded(g, workload, device, pair, array, calculus), 0.0)
    scales = jnp.where(product, scales, 0.0)
    staged = fetches > 1
    weights = jnp.where(staged, encoded, encoded * fetches)
    through = jnp.where(staged, encoded * (1 + fetches), 0.0)

    clock = device.macs_per_s[pair.name] / array.macs
    chip, dram = device.vtcm_bytes_per_s, device.dram_bytes_per_s * device.dram_efficiency
    passes = _tail_passes(workload, device, pair, free)
    added_bytes = 3 * workload.out_elements * passes * pair.activation_bits / 8
    if array.features_on_chip:
        memory_s = jnp.maximum((read + written + through) / chip, (weights + scales) / dram)
        added_memory_s, moved = added_bytes / chip, jnp.zeros_like(read)
    else:
        dram_s = (read + written + weights + scales) / dram
        limited = zip((read, weights, scales, written), array.channels, strict=True)
        for amount, limit in limited:
            dram_s = jnp.maximum(dram_s, amount / (limit * clock)) if limit else dram_s
        memory_s = jnp.maximum(through / chip, dram_s)
        added_memory_s, moved = added_bytes / dram, read + written + added_bytes
    added_array_s = workload.out_elements * passes * array.add_cycles / clock
    added_s = jnp.maximum(added_array_s, added_memory_s)
    return ArrayTimes(cycles / clock + added_s, memory_s + added_s, weights + scales, moved)


def _groups(workload: Workload, blocks: Blocks, bits: int) -> _Groups:
    d = workload.dims
    reduces = workload.passes[:, VECTOR_WORK.index("reduce")] > 0
    kinds = []
    for index, kind in enumerate(workload.kinds):
        plain = kind in ("vector", "move", "view")
        pool = "pool" in workload.works[index] or "reduce" in workload.works[index]
        kinds.append(("pool" if pool else "elementwise") if plain else kind)
    kinds = np.array(["dense" if kind == "matmul" else kind for kind in kinds])
    depth = d.groups * d.out_channels
    product = np.isin(kinds, ("conv", "dense"))
    in_depth = jnp.where(product, d.groups * d.in_channels, depth)
    height, width = jnp.where(reduces, 1.0, d.height), jnp.where(reduces, 1.0, d.width)
    rows = (kinds == "elementwise") & (depth < 8)
    height, width, depth, in_depth = (
        jnp.where(rows, 1.0, height),
        jnp.where(rows, d.height, width),
        jnp.where(rows, d.width * depth, depth),
        jnp.where(rows, d.width * depth, in_depth),
    )
    in_height = jnp.where(rows, 1.0, d.in_height)
    in_width = jnp.where(rows, d.in_height, d.in_width)
    kernel_height = jnp.where(reduces, d.height, d.kernel_height)
    kernel_width = jnp.where(reduces, d.width, d.kernel_width)
    b = blocks
    return _Groups(
        kinds=kinds,
        in_depth=in_depth,
        height=height,
        width=width,
        depth=depth,
        kernel_height=kernel_height,
        kernel_width=kernel_width,
        blocks=b,
        held=(
            jnp.minimum(b.height, height),
            jnp.minimum(b.width, width),
            jnp.minimum(b.depth, depth),
        ),
        fed=(
            jnp.minimum(b.in_height, in_height),
            jnp.minimum(b.in_width, in_width),
            jnp.minimum(b.in_depth, in_depth),
        ),
        plain_input=_at_edge(workload, 0),
        plain_result=_at_edge(workload, 1),
        bits=bits,
    )


def _array_cycles(g: _Groups, array: BlockArray, calculus: Calculus) -> Array:
    """Blocks in a pipeline of products and output: max(product, output) * blocks + min."""
    b, (h, w, d) = g.blocks, g.held
    micro_d = float(array.micro[0][2])
    across = _count(h, b.micro_height, calculus) * _count(w, b.micro_width, calculus)
    deep = _count(d, micro_d, calculus)
    taps = g.kernel_height * g.kernel_width
    pieces = _count(g.kernel_height, 8.0, calculus) * _count(g.kernel_width, 8.0, calculus)
    pieces = jnp.where(g.kinds == "dense", taps, pieces)
    each = taps / pieces
    least = 4 * micro_d  # cycles in which the weights of a microblock arrive
    first = b.kernel_first > 0
    four = _count(each, array.taps * 8.0 / g.bits, calculus)
    inner = _count(g.fed[2], 8.0, calculus)
    per_step = jnp.maximum(least, 4 * across)
    per_depth = per_step if array.shared else jnp.maximum(least, g.fed[2] / 8 * across)
    pool = jnp.maximum(4.0, each) * across * deep * (g.bits / 2)
    depthwise = jnp.maximum(least, 4 * across * g.bits / 8) * _count(each, 4.0, calculus) * deep
    kernel = per_step * four * deep * inner
    depth = per_depth * each * deep * (1 if array.shared else g.bits / 8)
    steps = jnp.where(first | (g.kinds == "depthwise"), four, each)
    steps = jnp.where(g.kinds == "pool", 1.0, steps)
    delay = jnp.where(deep == 1, 2 * steps, 2 * (steps - 1) * deep) * (across == 1)
    product = jnp.where(first, kernel + delay * inner, depth + delay)
    product = jnp.where(g.kinds == "depthwise", depthwise + delay, product)
    product = jnp.where(g.kinds == "pool", pool + delay, product) * pieces
    over = _count(g.in_depth, g.fed[2], calculus)
    product = jnp.where(np.isin(g.kinds, ("conv", "dense")), product * over, product) / array.cores
    volume = h * w * d
    output = array.output_cycles * volume
    latency = array.weight_memory[1]
    bias = np.isin(g.kinds, ("conv", "depthwise", "dense")) * (10 * latency / 256)
    output = jnp.maximum(output, bias * d)
    least_s = _block_cycles(g, array)
    command = (least_s + output + product) / 2
    product, output = jnp.maximum(product, command), jnp.maximum(output, command)
    count = jnp.maximum(g.height / h, 1) * jnp.maximum(g.width / w, 1)
    count = count * jnp.maximum(g.depth / d, 1)
    pipelined = calculus.largest(product, output) * count + calculus.smallest(product, output)
    whole = b.height * b.width * b.depth
    each_element = array.add_cycles
    if array.shared:
        each_element = jnp.maximum(each_element, (least_s / whole + each_element) / 4)
    elementwise = each_element * g.height * g.width * g.depth
    return jnp.where(g.kinds == "elementwise", elementwise, pipelined)


def _block_cycles(g: _Groups, array: BlockArray) -> Array:
    """Cycles to bring one block of inputs and to take one of results away."""
    burst, read, write = array.feature_memory
    rate = float(array.feature_rate)
    inputs = g.fed[0] * g.fed[1] * g.fed[2] * g.bits / 8
    results = g.held[0] * g.held[1] * g.held[2] * g.bits / 8
    inputs = inputs * burst / _read_burst(g, burst)
    results = results * burst / _write_burst(g, burst, array.write_cores)
    return read + write + (inputs + results) / rate


def _bytes(g: _Groups, array: BlockArray, calculus: Calculus) -> tuple[Array, Array, Array, Array]:
    """(inputs read, results written, scales, fetches of the weights); bursts filled up."""
    h, w, d = g.held
    across = _count(g.height, h, calculus) * _count(g.width, w, calculus)
    blocks = jnp.where(
        np.isin(g.kinds, ("conv", "dense")), across * _count(g.depth, d, calculus), across
    )
    pieces = _count(g.kernel_height, 8.0, calculus) * _count(g.kernel_width, 8.0, calculus)
    inner = jnp.where(g.plain_input, g.in_depth, calculus.round_up(g.in_depth, 16 + 0 * h))
    outer = jnp.where(g.plain_result, g.depth, calculus.round_up(g.depth, 16 + 0 * h))
    read = g.fed[0] * g.fed[1] * inner * pieces * blocks
    read = jnp.where(g.kinds == "elementwise", 2 * g.height * g.width * inner, read)
    written = g.height * g.width * outer
    burst = array.feature_memory[0]
    size = g.bits / 8
    read = read * size * burst / _read_burst(g, burst)
    written = written * size * burst / _write_burst(g, burst, array.write_cores)
    return read, written, 10 * g.depth * across, across


def _read_burst(g: _Groups, longest: int) -> Array:
    """Bytes in a row of an input block, at most the longest burst."""
    size, b = g.bits / 8, g.blocks
    plain = jnp.where(g.in_depth == b.in_depth, b.in_width * b.in_depth, b.in_depth)
    return jnp.minimum(longest, size * jnp.where(g.plain_input, plain, 16 * b.in_width))


def _write_burst(g: _Groups, longest: int, cores: int) -> Array:
    """Bytes in a row of a block of results, at most the longest burst."""
    size, b = g.bits / 8, g.blocks
    whole = (g.depth == b.depth) & (b.depth <= 16)
    parts = jnp.minimum(jnp.minimum(64 / size, 16.0 * cores), b.depth)
    plain = jnp.where(whole, b.width * b.depth, parts)
    return jnp.minimum(longest, size * jnp.where(g.plain_result, plain, 16 * b.width * cores))


def _encoded(
    g: _Groups,
    workload: Workload,
    device: Device,
    pair: Pair,
    array: BlockArray,
    calculus: Calculus,
) -> Array:
    """Bytes of losslessly compressed weights: those that count, and the zeros that fill up."""
    taps = g.kernel_height * g.kernel_width
    four = (g.blocks.kernel_first > 0) | (g.kinds == "depthwise")
    padded = jnp.where(four, 4 * _count(taps, 4.0, calculus), taps)
    inner = jnp.where(g.kinds == "depthwise", 1.0, 8 * _count(g.in_depth, 8.0, calculus))
    micro = float(array.micro[0][2])
    outer = micro * _count(g.depth, micro, calculus)
    zeros = jnp.maximum(padded * inner * outer - workload.weight_elements, 0.0)
    each = device.stored_bits.get(f"w{pair.weight_bits}", float(pair.weight_bits))
    return (workload.weight_elements * each + zeros * array.zero_bits) / 8 + 16.0 * array.cores


def _tail_passes(workload: Workload, device: Device, pair: Pair, free: tuple[str, ...]) -> Array:
    """Elementwise passes of the fused operators that the array cannot fuse, and of own work that
    takes more than one."""
    tails = [
        sum(device.cost_of(work, pair.activation) for op, work in tail if op not in free)
        for tail in workload.tails
    ]
    own = []
    for works in workload.works:
        kinds = [work for work in works if work not in ("pool", "reduce")]
        cost = sum(device.cost_of(work, pair.activation) for work in kinds)
        own.append(jnp.maximum(cost - 1.0, 0.0) if kinds else 0.0)
    return jnp.stack([jnp.asarray(a + b, jnp.float32) for a, b in zip(tails, own, strict=True)])


def _at_edge(workload: Workload, side: int) -> np.ndarray:
    """Groups that read an input of the graph (side 0) or make an output (side 1)."""
    found = np.zeros(len(workload.groups), bool)
    for edge in workload.edges:
        if edge[side] < 0 and edge[1 - side] >= 0:
            found[edge[1 - side]] = True
    return found


def _count(x: Array, granule: Leaf, calculus: Calculus) -> Array:
    """How many granules hold x."""
    granule = jnp.broadcast_to(jnp.asarray(granule, jnp.float32), jnp.shape(x))
    return calculus.round_up(x, granule) / granule
