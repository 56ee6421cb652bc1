"""The rows add up to the latency of the plan, and the bottleneck is the longest part."""

import numpy as np
import pytest

from jqnt.demo import MODEL
from jqnt.graph.onnx_import import import_onnx
from jqnt.npu import device, latency, workload
from jqnt.npu.layers import layer_costs


@pytest.fixture(scope="module")
def work():
    graph, params, _ = import_onnx(MODEL)
    return workload(graph, params)


@pytest.mark.parametrize(
    ("name", "pair"), [("embedded-demo", "w4a8"), ("snapdragon-8-gen-3", "w8a8")]
)
def test_the_rows_add_up(work, name, pair):
    target = device(name)
    rows = layer_costs(work, pair, target)
    total = float(target.graph_s) + sum(row.latency_s for row in rows)
    np.testing.assert_allclose(total, float(latency(work, pair, target)), rtol=1e-6)
    assert [row.name for row in rows] == list(work.groups)
    assert {row.pair for row in rows} == {pair}
    for row in rows:
        parts = {
            "compute": row.compute_s,
            "memory": row.memory_s,
            "dispatch": float(target.dispatch_s),
        }
        assert parts[row.bottleneck] == max(parts.values())


def test_the_counts_are_those_of_the_network(work):
    rows = {row.name: row for row in layer_costs(work, "w4a8", device("embedded-demo"))}
    stem = rows["stem/conv"]
    assert stem.macs == 16 * 16 * 16 * 9
    assert stem.weight == "stem.weight"
    assert rows["fc"].weight_bytes == 64 * 10 * 4 / 8 + 10 * 4
    second = rows["block1.a/conv"]
    np.testing.assert_allclose(second.compute_s, 16 * 16 * 16 * 16 * 9 / 25.6e9, rtol=1e-6)
    assert second.intensity == second.macs / second.traffic_bytes


def test_a_mixed_plan_takes_each_groups_pair(work):
    target = device("embedded-demo")
    choice = dict.fromkeys(work.groups, "w8a8") | {"fc": "w2a8"}
    rows = {row.name: row.pair for row in layer_costs(work, choice, target)}
    assert rows["fc"] == "w2a8"
    assert rows["stem/conv"] == "w8a8"
