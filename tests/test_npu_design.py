"""Questions of design: other numbers of a device, and what a plan's latency hangs on."""

from dataclasses import replace

import pytest
from test_npu import chain

import jqnt.npu as npu
from jqnt.errors import ConfigError
from jqnt.npu.design import elasticities, with_numbers
from jqnt.npu.knobs import paths_of


def test_numbers_are_replaced_by_name():
    device = npu.device("embedded-demo")
    found = with_numbers(device, {"vtcm_bytes": 1e6, "macs_per_s.w8a8": 1e9})
    assert found.vtcm_bytes == 1e6
    assert found.macs_per_s["w8a8"] == 1e9
    assert found.macs_per_s["w4a8"] == device.macs_per_s["w4a8"]
    assert replace(found, vtcm_bytes=device.vtcm_bytes, macs_per_s=device.macs_per_s) == device
    with pytest.raises(ConfigError, match="vtcm_bytes"):
        with_numbers(device, {"vtcm_byte": 1.0})
    with pytest.raises(ConfigError, match="zero or more"):
        with_numbers(device, {"vtcm_bytes": -1.0})


def test_elasticities_are_differences_and_sum_to_one():
    """Seconds are homogeneous of degree one in overheads and degree minus one in rates."""
    device = npu.device("embedded-demo")
    work = npu.workload(*chain([(16, 3, 1, 1), (256, 1, 1, 1), (256, 3, 2, 1)], size=8))
    found = elasticities(work, "w8a8", device)
    rates = ("macs_per_s", "dram_bytes_per_s", "vector_per_s", "vtcm_bytes_per_s")
    times = ("dispatch_s", "graph_s", "serial_s")
    assert sum(v for k, v in found.items() if k.startswith(rates)) == pytest.approx(
        sum(v for k, v in found.items() if k.startswith(times)) - 1, abs=1e-3
    )
    base = float(npu.latency(work, "w8a8", device))
    for name in ("macs_per_s.w8a8", "dispatch_s"):
        value = paths_of(device)[name]
        more = with_numbers(device, {name: 1.001 * value})
        difference = (float(npu.latency(work, "w8a8", more)) / base - 1) / 1e-3
        assert found[name] == pytest.approx(difference, abs=0.02)
