"""QNN profiles in each form that tools write, and their join with the graph."""

import numpy as np
import pytest

from jqnt.demo import MODEL
from jqnt.errors import DataError
from jqnt.graph.onnx_import import import_onnx
from jqnt.npu import device, workload
from jqnt.npu.layers import layer_costs
from jqnt.npu.measured import compare_profile, measurements_in
from jqnt.npu.profiles import parse_profile, read_profile

CSV = """Msg Timestamp,Message,Time,Unit of Measurement,Timing Source,Event Level,Event Identifier
0,FINALIZE,25549,US,BACKEND,ROOT,QNN (finalize) time
0,UNKNOWN,279,US,BACKEND,SUB-EVENT,Graph Preparation Initializing
0,BACKEND,4,COUNT,BACKEND,ROOT,Number of HVX threads used
0,BACKEND,1000,CYCLES,BACKEND,ROOT,Accelerator (execute) time (cycles)
0,NODE,100,CYCLES,BACKEND,SUB-EVENT,Input OpId_2 (cycles)
0,NODE,300,CYCLES,BACKEND,SUB-EVENT,_stem_conv_token_2:OpId_25 (cycles)
0,NODE,500,CYCLES,BACKEND,SUB-EVENT,odd, name:OpId_26 (cycles)
0,BACKEND,2000,US,BACKEND,ROOT,Accelerator (execute) time
0,BACKEND,4,COUNT,BACKEND,ROOT,Number of HVX threads used
0,BACKEND,3000,CYCLES,BACKEND,ROOT,Accelerator (execute) time (cycles)
0,NODE,500,CYCLES,BACKEND,SUB-EVENT,_stem_conv_token_2:OpId_31 (cycles)
0,NODE,700,CYCLES,BACKEND,SUB-EVENT,odd, name:OpId_33 (cycles)
0,BACKEND,2000,US,BACKEND,ROOT,Accelerator (execute) time
"""
EIGHT = """Msg Timestamp,Message,Time,Unit of Measurement,Timing Source,Event Level,Event Identifier,ONNX Source Ops
0,BACKEND,1000,CYCLES,BACKEND,ROOT,Accelerator (execute) time (cycles),
0,NODE,400,CYCLES,BACKEND,SUB-EVENT,x:OpId_25 (cycles),stem/conv;stem/relu
0,BACKEND,10,US,BACKEND,ROOT,Accelerator (execute) time,
"""  # noqa: E501
VIEWER = """Execute Stats (Overall):
------------------------
    Graph 0 (model):
        Backend (Accelerator (execute) time (cycles)): 9 cycles
            stem_conv:OpId_19 (cycles): 9 cycles
Execute Stats (Average):
------------------------
Total Inference Time:
---------------------
    Graph 0 (model):
        NetRun:  2952 us
        Backend (Number of HVX threads used): 4 count
        Backend (RPC (execute) time): 2920 us
        Backend (Accelerator (execute) time (cycles)): 2000 cycles
            Input OpId_2 (cycles): 1234 cycles
            stem_conv:OpId_19 (cycles): 500 cycles
        Backend (Accelerator (execute) time): 1000 us
        Backend (QNN (execute) time): 2949 us
"""
SECOND = """Execute Stat 1
    Accelerator (execute) time (cycles) : 2000  cycles
    stem_conv:OpId_7 (cycles) : 500  cycles
    Accelerator (execute) time : 1000  us
"""
LINES = """I Node stem_conv (Conv2d) execute time: 120 us
I Node fc (FullyConnected, CPU) execute time: 80.5 us
I Node stem_conv (Conv2d) execute time: 140 us
"""


@pytest.mark.parametrize(
    ("text", "seconds", "cycles", "inferences"),
    [
        (CSV, 400 * 2e-3 / 2000, 400, 2),
        (EIGHT, 400 * 1e-8, 400, 1),
        (VIEWER, 500 * 5e-7, 500, 1),
        (SECOND, 500 * 5e-7, 500, 1),
        (LINES, 130e-6, np.nan, 2),
    ],
    ids=["csv", "csv-8", "viewer", "second", "lines"],
)
def test_every_form_gives_the_same_kind_of_times(text, seconds, cycles, inferences):
    profile = parse_profile(text)
    node = profile.nodes[0]
    np.testing.assert_allclose(node.seconds, seconds)
    np.testing.assert_equal(node.cycles, cycles)
    assert profile.inferences == inferences
    assert "Input" not in {n.name for n in profile.nodes}


def test_names_may_hold_commas_and_lines_tell_the_cpu():
    assert [n.name for n in parse_profile(CSV).nodes] == ["_stem_conv_token_2", "odd, name"]
    assert parse_profile(EIGHT).nodes[0].sources == ("stem/conv", "stem/relu")
    assert [n.on_cpu for n in parse_profile(LINES).nodes] == [False, True]
    assert parse_profile(VIEWER).totals_s["rpc"] == pytest.approx(2920e-6)


@pytest.fixture(scope="module")
def work():
    graph, params, _ = import_onnx(MODEL)
    return workload(graph, params)


def test_the_join_puts_measured_beside_predicted(work):
    target = device("embedded-demo")
    rows = {row.name: row for row in layer_costs(work, "w8a8", target)}
    found = compare_profile(parse_profile(LINES), work, "w8a8", target)
    stem, fc = found.groups
    assert (stem.name, fc.name) == ("stem/conv", "fc")
    assert stem.predicted_s == rows["stem/conv"].latency_s
    assert stem.measured_s == pytest.approx(130e-6)
    assert found.fallbacks == ("fc",)
    assert len(found.missing) == len(rows) - 2
    assert found.measured_s == pytest.approx(210.5e-6)
    assert [m.group for m in measurements_in(found, work)] == ["stem/conv", "fc"]


def test_source_names_win_and_strangers_are_told(work):
    target = device("embedded-demo")
    assert compare_profile(parse_profile(EIGHT), work, "w8a8", target).groups[0].name == "stem/conv"
    found = compare_profile(parse_profile(CSV), work, "w8a8", target)
    assert [node.name for node in found.unmatched] == ["odd, name"]
    with pytest.raises(DataError, match="no node of the profile"):
        compare_profile(parse_profile("Node nobody execute 3 us"), work, "w8a8", target)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no node times"),
        ("hello\nworld", "no node times"),
        (CSV.replace("0,NODE,100,", "0,NODE,ten,"), "no number"),
        ("Msg Timestamp,Message\n0,NODE", "columns"),
    ],
)
def test_what_is_no_profile_is_refused(text, message, tmp_path):
    path = tmp_path / "profile.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_profile(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        read_profile(tmp_path / "nowhere.csv")


def test_cycles_without_a_length_are_refused(work):
    text = "\n".join(line for line in CSV.splitlines() if "(execute) time" not in line)
    with pytest.raises(DataError, match="no length"):
        compare_profile(parse_profile(text), work, "w8a8", device("embedded-demo"))
