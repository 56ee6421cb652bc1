"""`jqnt profile` with a measured profile, a mode and a plot; and what it refuses."""

import json

import pytest

from jqnt.cli import run
from jqnt.demo import MODEL

LINES = "Node stem_conv (Conv2d) execute 120 us\nNode fc (FC, CPU) execute 80 us\n"


def profiled(capsys, *options):
    code = run(["profile", str(MODEL), "--device", "snapdragon-8-gen-3", "--json", *options])
    out = capsys.readouterr()
    return code, (json.loads(out.out) if code == 0 else out.err)


def test_measured_mode_and_plot(capsys, tmp_path):
    path, plot = tmp_path / "lines.txt", tmp_path / "roofline.svg"
    path.write_text(LINES)
    code, found = profiled(capsys, "--measured", str(path), "--plot", str(plot))
    assert code == 0
    assert found["measured"]["fallbacks"] == ["fc"]
    assert found["measured"]["measured_s"] == pytest.approx(200e-6)
    assert {a["topic"] for a in found["advice"]} <= {
        "fallback", "layout", "division", "affine", "narrow", "spill", "shape", "loser"
    }  # fmt: skip
    assert found["peak_memory_bytes"] > found["size_bytes"]
    assert b"<svg" in plot.read_bytes()
    _, slower = profiled(capsys, "--mode", "power_saver")
    assert slower["latency_s"] > 1.5 * found["latency_s"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mode", "bursty"), "burst"),
        (("--measured", "nowhere.csv"), "nowhere.csv"),
        (("--plot", "nowhere/roofline.svg"), "nowhere"),
    ],
)
def test_bad_options_are_one_line(capsys, options, message):
    code, error = profiled(capsys, *options)
    assert code == 2
    assert message in error
