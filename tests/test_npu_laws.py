"""Laws of the cost model, on random small networks: exactness, slopes, monotonicity, bounds."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_npu import chain

import jqnt.npu as npu
from jqnt.npu.conversions import conversion_latency, conversions, expected_conversion
from jqnt.npu.cost import group_costs
from jqnt.npu.elements import ALL, PLAN, ROOFLINE
from jqnt.npu.real_bits import latency_of_bits
from jqnt.npu.smooth import EXACT, RELAXED, largest, p_norm, round_up, smallest

DEVICES = ["snapdragon-8-gen-3", "embedded-demo", "generic-roofline"]
COUNT = 4  # one number of layers: one compiled program for each device

layer = st.tuples(
    st.integers(1, 96), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]), st.just(1)
)
networks = st.lists(layer, min_size=COUNT, max_size=COUNT)
FEW = settings(max_examples=12, deadline=None)


def work_of(spec, size=32):
    return npu.workload(*chain(spec, size=size))


@FEW
@given(networks, st.sampled_from(DEVICES), st.randoms(use_true_random=False))
def test_expectation_at_one_hot_is_the_sum_of_its_entries(spec, name, random):
    device = npu.device(name)
    work = work_of(spec)
    table = npu.tables(work, device)
    choice = [random.randrange(len(table.pairs)) for _ in work.groups]
    rows = jax.nn.one_hot(np.array(choice), len(table.pairs))
    entries = np.asarray(table.latency_s, np.float64)[np.arange(len(choice)), choice]
    exact = float(table.constant_s) + entries.sum()
    np.testing.assert_allclose(npu.expected_latency(table, rows), exact, rtol=1e-6)
    by_name = {g: table.pairs[c] for g, c in zip(work.groups, choice, strict=True)}
    np.testing.assert_allclose(npu.latency(work, by_name, device), exact, rtol=1e-6)
    whole = exact + float(conversion_latency(work, by_name, device))
    np.testing.assert_allclose(npu.latency(work, by_name, device, PLAN), whole, rtol=1e-6)


@FEW
@given(networks, st.sampled_from(DEVICES))
def test_relaxed_equals_exact_at_integer_dimensions(spec, name):
    device, work = npu.device(name), work_of(spec)
    exact, loose = (npu.tables(work, device, calculus=c).latency_s for c in (EXACT, RELAXED))
    np.testing.assert_allclose(loose, exact, rtol=1e-6)


@FEW
@given(networks)
def test_never_below_the_roofline_and_each_effect_only_adds(spec):
    device, work = npu.device("snapdragon-8-gen-3"), work_of(spec)
    full = npu.tables(work, device)
    bound = npu.tables(work, device, elements=ROOFLINE)
    total = np.asarray(full.latency_s).sum(0)
    assert (total >= np.asarray(bound.latency_s).sum(0) * (1 - 1e-6)).all()
    for effect in ("granules", "tiling", "utilization", "serial", "transposes", "overheads"):
        without = npu.tables(work, device, elements=replace(ALL, **{effect: False}))
        assert (np.asarray(without.latency_s).sum(0) <= total * (1 + 1e-6)).all(), effect


@FEW
@given(networks, st.sampled_from(DEVICES))
def test_fewer_bits_never_cost_more(spec, name):
    device, work = npu.device(name), work_of(spec)
    table = npu.tables(work, device)
    total = np.asarray(table.latency_s).sum(0)
    by = {(p.weight_bits, p.activation_bits): t for p, t in zip(table.pairs, total, strict=True)
          if not p.floating}  # fmt: skip
    for (w, a), seconds in by.items():
        for (w2, a2), more in by.items():
            if w <= w2 and a <= a2:
                assert seconds <= more * (1 + 1e-6)


@FEW
@given(networks, st.floats(2, 8), st.floats(8, 16))
def test_real_bits_lie_between_the_legal_ones(spec, w, a):
    work = work_of(spec)
    table = npu.tables(work, npu.device("snapdragon-8-gen-3"))
    count = len(work.groups)
    full = lambda b: jnp.full(count, float(b))  # noqa: E731
    at = lambda w, a: float(latency_of_bits(table, full(w), full(a)))  # noqa: E731
    assert at(4.0, 8.0) * (1 - 1e-6) <= at(w, a) <= at(8.0, 16.0) * (1 + 1e-6)
    for pair in ("w8a8", "w4a16"):
        parsed = npu.pair_named(pair)
        exact = npu.latency(work, pair, npu.device("snapdragon-8-gen-3"))
        np.testing.assert_allclose(at(parsed.weight_bits, parsed.activation_bits), exact, rtol=1e-6)


def test_slopes_in_real_bits_are_the_differences_of_the_cell():
    work = work_of([(64, 3, 1, 1), (512, 1, 1, 1), (512, 1, 1, 1), (64, 1, 1, 1)], size=8)
    table = npu.tables(work, npu.device("snapdragon-8-gen-3"), ["w8a8", "w4a8", "w8a16", "w4a16"])
    seconds = lambda w: latency_of_bits(table, w, jnp.full(COUNT, 8.0))  # noqa: E731
    slope = jax.grad(seconds)(jnp.full(COUNT, 6.0))
    wide, narrow = np.asarray(table.latency_s)[:, 0], np.asarray(table.latency_s)[:, 1]
    np.testing.assert_allclose(slope, (wide - narrow) / 4, rtol=1e-4, atol=1e-12)
    assert (np.asarray(slope) > 0).any()


@pytest.mark.parametrize(
    "number", ["dram_bytes_per_s", "vtcm_bytes_per_s", "vtcm_bytes", "dispatch_s", "serial_s"]
)
def test_slopes_in_the_device_are_differences_of_the_relaxed_form(number):
    device = replace(npu.device("snapdragon-8-gen-3"), vtcm_bytes=60_000.0)
    work = work_of([(64, 3, 1, 1), (128, 3, 1, 1), (64, 5, 2, 1), (16, 1, 1, 1)])

    def seconds(value):
        turned = replace(device, **{number: value})
        table = npu.tables(work, turned, ["w8a8"], calculus=RELAXED)
        return npu.expected_latency(table, jnp.ones((COUNT, 1)))

    value = float(getattr(device, number))
    slope = float(jax.grad(seconds)(value))
    step = 1e-2 * value
    difference = (float(seconds(value + step)) - float(seconds(value - step))) / (2 * step)
    scale = float(seconds(value)) / value
    np.testing.assert_allclose(slope / scale, difference / scale, rtol=3e-2, atol=1e-3)


def test_more_on_chip_memory_is_worth_what_the_gradient_says():
    device = replace(npu.device("snapdragon-8-gen-3"), vtcm_bytes=50_000.0)
    work = work_of([(64, 3, 1, 1), (64, 3, 1, 1), (64, 3, 1, 1), (64, 3, 1, 1)])
    slope = jax.grad(lambda v: npu.latency(work, "w8a16", replace(device, vtcm_bytes=v)))(50_000.0)
    assert slope < 0
    bigger = npu.latency(work, "w8a16", replace(device, vtcm_bytes=1e7))
    assert bigger < npu.latency(work, "w8a16", device)
    gone = jax.grad(lambda v: npu.latency(work, "w8a16", replace(device, vtcm_bytes=v)))(1e7)
    assert abs(gone * 1e7) < 1e-9 * float(bigger)


def test_slopes_in_channels_reach_a_search():
    device = npu.device("snapdragon-8-gen-3")
    work = work_of([(48, 3, 1, 1), (48, 3, 1, 1), (48, 3, 1, 1), (48, 3, 1, 1)])

    def seconds(channels):
        wider = replace(work, dims=replace(work.dims, out_channels=channels))
        return npu.expected_latency(npu.tables(wider, device, ["w8a8"]), jnp.ones((COUNT, 1)))

    slope = jax.grad(seconds)(jnp.asarray(work.dims.out_channels))
    assert (np.asarray(slope) > 0).all()


def test_energy_counts_bytes_and_operations():
    device, work = npu.device("embedded-demo"), work_of([(8, 3, 1, 1)] * COUNT)
    cost = group_costs(work, device, device.pair("w8a8"))
    own = (work.in_elements + work.out_elements) * 1e-12
    expected = work.dims.macs * 0.5e-12 + np.asarray(cost.traffic_bytes) * 20e-12 + own
    np.testing.assert_allclose(cost.energy_j, expected, rtol=1e-5)


def test_conversions_are_bilinear_and_only_where_formats_change():
    device, work = npu.device("snapdragon-8-gen-3"), work_of([(32, 3, 1, 1)] * COUNT)
    priced = conversions(work, device)
    names = [pair.name for pair in device.pairs]
    rows = lambda plan: jax.nn.one_hot(np.array([names.index(p) for p in plan]), len(names))  # noqa: E731
    assert expected_conversion(priced, rows(["w8a8", "w4a8", "w8a8", "w4a8"])) == 0
    one = float(expected_conversion(priced, rows(["w8a8", "w8a16", "w8a16", "w8a16"])))
    two = float(expected_conversion(priced, rows(["w8a8", "w8a16", "w8a16", "w8a8"])))
    assert two == pytest.approx(2 * one, rel=1e-6)
    elements = 32 * 32 * 32
    rate = float(device.vector_per_s["a16"]) / float(device.vector_cost["convert"])
    assert one == pytest.approx(elements / rate + float(device.dispatch_s), rel=1e-5)
    half = 0.5 * (rows(["w8a8"] * 4) + rows(["w8a16"] * 4))
    assert float(expected_conversion(priced, half)) == pytest.approx(3 * one / 2, rel=1e-5)


@FEW
@given(st.lists(st.floats(2.0**-23, 2.0**-7, width=32), min_size=2, max_size=4))
def test_largest_and_smallest_are_exact_with_positive_slopes(values):
    terms = [jnp.float32(v) for v in values]
    assert largest(*terms) == max(terms)
    assert smallest(*terms) == min(terms)
    slopes = np.asarray(jax.grad(lambda x: largest(*x))(jnp.stack(terms)))
    assert (slopes >= 0).all()
    assert slopes.sum() == pytest.approx(float(p_norm(jnp.stack(terms)) / max(terms)), rel=0.3)
    np.testing.assert_allclose(
        slopes, np.asarray(jax.grad(p_norm)(jnp.stack(terms))), rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("granule", [1, 3, 8, 32, 48])
def test_round_up_is_exact_integer_arithmetic(granule):
    x = np.arange(0, 5000)
    rounded = round_up(jnp.asarray(x, jnp.float32), jnp.full(x.shape, granule, jnp.float32))
    np.testing.assert_array_equal(rounded, -(-x // granule) * granule)
