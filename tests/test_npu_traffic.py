"""Bytes through DRAM against integer arithmetic: passes, strips, spills, in both calculi."""

from dataclasses import replace
from math import ceil, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_npu import chain

import jqnt.npu as npu
from jqnt.npu.elements import ALL
from jqnt.npu.smooth import EXACT, RELAXED
from jqnt.npu.traffic import tiled_bytes

CASES = [  # output channels, kernel, size, on-chip bytes: what is short
    (64, 3, 16, 10**6),  # nothing
    (64, 3, 16, 20_000),  # activations, not weights
    (512, 3, 8, 9_000),  # both, weights most
    (16, 1, 64, 30_000),  # activations most
    (300, 5, 7, 3_001),  # everything, by far
]


def expected(out, kernel, size, room, channels=32):
    """(weights, activations) of the second convolution: 8-bit integers throughout."""
    weights = out * channels * kernel * kernel
    read, written = channels * size * size, out * size * size
    own = read + written
    spilled = min(max(own - room, 0), own)
    half = room / 2
    passes, strips = max(ceil(weights / half), 1), max(ceil(own / half), 1)
    read = read * spilled / own
    halo = max(kernel - 1, 0) * read / size * (strips - 1)
    square = max(sqrt(min(passes, strips)), 1)
    extra = min(
        read * (passes - 1),
        weights * (strips - 1) + halo,
        (read + weights) * (square - 1) + halo,
    )
    return weights, spilled + (extra if spilled else 0)


@pytest.mark.parametrize("calculus", [EXACT, RELAXED], ids=["exact", "relaxed"])
@pytest.mark.parametrize("case", CASES)
def test_traffic_is_that_of_whole_passes(case, calculus):
    out, kernel, size, room = case
    work = npu.workload(*chain([(32, 1, 1, 1), (out, kernel, 1, 1)], size=size))
    device = replace(npu.device("snapdragon-8-gen-3"), vtcm_bytes=float(room))
    work, device = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (work, device))
    weights, activations = tiled_bytes(work, device, device.pair("w8a8"), ALL, calculus)
    np.testing.assert_allclose([weights[1], activations[1]], expected(*case), rtol=1e-4)


def test_without_tiling_nothing_comes_twice_and_without_residency_all_leaves():
    work = npu.workload(*chain([(32, 1, 1, 1), (512, 3, 1, 1)], size=8))
    device = replace(npu.device("snapdragon-8-gen-3"), vtcm_bytes=9_000.0)
    work, device = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (work, device))
    pair = device.pair("w8a8")
    own = (32 + 512) * 64
    off = replace(ALL, tiling=False)
    assert tiled_bytes(work, device, pair, off, EXACT)[1][1] == 0
    off = replace(ALL, tiling=False, residency=False)
    assert tiled_bytes(work, device, pair, off, EXACT)[1][1] == own


def test_memory_that_just_suffices_has_a_slope():
    """Forward exact: nothing is spilled; backward smooth: a little less memory would cost."""
    work = npu.workload(*chain([(32, 1, 1, 1), (64, 3, 1, 1)], size=8))
    work = jax.tree.map(jnp.asarray, work)
    need = float(jnp.max(work.live_elements))
    device = npu.device("snapdragon-8-gen-3")

    def spilled(room):
        return tiled_bytes(
            work, replace(device, vtcm_bytes=room), device.pair("w8a8"), ALL, EXACT
        )[1].sum()  # fmt: skip

    value, slope = jax.value_and_grad(spilled)(1.02 * need)
    assert value == 0
    assert slope < -0.05
    assert abs(jax.grad(spilled)(20.0 * need)) < 1e-6
