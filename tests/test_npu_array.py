"""Ethos-U profiles against Arm's Vela, layer by layer, and their laws."""

import numpy as np
import pytest
from scipy.stats import spearmanr

import jqnt.npu as npu
from jqnt.errors import DataError
from jqnt.npu.cost import group_costs, with_blocks
from jqnt.npu.sweeps import SweepRow, layer_workload, read_sweep
from jqnt.npu.union import union


@pytest.fixture(scope="module")
def sweep(data):
    return read_sweep(data / "npu" / "vela_dev.csv")


def priced(rows, profile):
    device = npu.device(profile)
    joined = with_blocks(union([layer_workload(row) for row in rows]), device)
    table = {
        pair: np.asarray(group_costs(joined, device, device.pair(pair)).latency_s)
        for pair in {row.pair for row in rows}
    }
    said = np.array([table[row.pair][i] * row.clock_hz for i, row in enumerate(rows)])
    return said, np.array([row.cycles for row in rows])


@pytest.mark.parametrize(
    ("config", "profile", "bar", "rank"),
    [
        ("u55-128", "ethos-u55-128", 0.08, 0.995),
        ("u65-512", "ethos-u65-512", 0.13, 0.985),
        ("u85-512", "ethos-u85-512", 0.21, 0.98),
    ],
)
def test_cycles_are_near_those_of_vela(sweep, config, profile, bar, rank):
    said, seen = priced([row for row in sweep if row.config == config], profile)
    assert np.abs(said / seen - 1).mean() <= bar
    assert spearmanr(said, seen)[0] >= rank


def test_an_add_on_u55_takes_three_halves_of_a_cycle_per_element():
    row = SweepRow("add", "add", (16, 16, 16, 16, 16, 16, 1, 1, 1), "w8a8", "", 1, 1)
    seconds = float(npu.latency(layer_workload(row), "w8a8", npu.device("ethos-u55-128")))
    assert seconds * 500e6 == pytest.approx(1.5 * 16 * 16 * 16)


@pytest.mark.parametrize("profile", ["ethos-u55-128", "ethos-u65-512", "ethos-u85-512"])
def test_fewer_levels_never_take_longer_and_help_where_weights_bound(profile):
    fc = SweepRow("fc", "fc", (1, 1, 1024, 1, 1, 1024, 1, 1, 1), "w8a8", "", 1, 1)
    work, device = layer_workload(fc), npu.device(profile)
    eight, four, two = (float(npu.latency(work, p, device)) for p in ("w8a8", "w4a8", "w2a8"))
    assert two <= four < eight
    if profile == "ethos-u55-128":
        assert eight == pytest.approx(1024 * 1024 * 7.55 / 8 / 0.5e9, rel=0.02)


def test_an_unknown_operator_and_a_bad_table_are_refused(tmp_path):
    with pytest.raises(DataError, match="gelu"):
        layer_workload(SweepRow("x", "gelu", (1,) * 9, "w8a8", "", 1, 1))
    with pytest.raises(DataError, match="cannot be read"):
        read_sweep(tmp_path / "none.csv")
    (tmp_path / "bad.csv").write_text("layer,op\nx,conv\n")
    with pytest.raises(DataError, match="no column"):
        read_sweep(tmp_path / "bad.csv")
