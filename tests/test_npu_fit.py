"""Fitting finds the device that made the measurements, and says how far off it may be."""

from dataclasses import replace

import numpy as np
import pytest
from test_npu import chain

import jqnt.npu as npu
from jqnt.errors import ConfigError, DataError, ModelError
from jqnt.npu.fit_device import Measurement, fit_device, fit_devices
from jqnt.npu.knobs import HEXAGON, Knob, paths_of, scaled, start_values
from jqnt.npu.latencies import measurements_of, read_graphs, read_latencies

KNOBS = (
    Knob("bandwidth", ("dram_bytes_per_s",), 1.0),
    Knob("rate", ("macs_per_s.w*",), 1.0),
    Knob("dispatch", ("dispatch_s",), 1.0),
)


@pytest.fixture(scope="module")
def networks():
    specs = {
        "wide": [(512, 1, 1, 1), (1024, 1, 1, 1), (1024, 1, 1, 1)],
        "deep": [(96, 3, 1, 1), (96, 3, 1, 1), (96, 3, 1, 1)],
        "small": [(16, 3, 2, 1), (16, 3, 2, 1), (16, 3, 1, 1)],
        "mixed": [(64, 3, 1, 1), (512, 1, 1, 1), (64, 3, 1, 1)],
    }
    sizes = {"wide": 2, "deep": 28, "small": 8, "mixed": 14}
    return {n: npu.workload(*chain(spec, size=sizes[n])) for n, spec in specs.items()}


def test_the_device_that_measured_is_found_again(networks):
    guess = npu.device("generic-roofline")
    guess = replace(guess, dispatch_s=5e-7)
    truth = scaled(guess, KNOBS, {"bandwidth": np.log(0.5), "rate": np.log(1.6), "dispatch": 0.7})
    measured = [
        Measurement(work, "w8a8", float(npu.latency(work, "w8a8", truth)))
        for work in networks.values()
    ]
    found, evidence = fit_device(guess, measured, KNOBS)
    want, got = paths_of(truth), paths_of(found)
    for path in ("dram_bytes_per_s", "macs_per_s.w8a8", "dispatch_s"):
        assert got[path] == pytest.approx(float(want[path]), rel=0.05), path
    seconds = np.array([m.latency_s for m in measured])
    np.testing.assert_allclose(evidence.predicted_s, seconds, rtol=0.02)
    assert np.isfinite(evidence.held_out_s).all()
    assert found.relative_error > 0


def test_groups_can_be_measured_and_one_outlier_does_not_rule(networks):
    guess = npu.device("generic-roofline")
    truth = replace(guess, dram_bytes_per_s=guess.dram_bytes_per_s / 3)
    table = npu.tables(networks["wide"], truth, ["w8a8"]).latency_s
    groups = networks["wide"].groups
    measured = [
        Measurement(networks["wide"], "w8a8", float(table[i, 0]), group=name)
        for i, name in enumerate(groups)
    ]
    measured += [measured[0], measured[1], measured[2]._replace(latency_s=1.0)]
    knob = (Knob("bandwidth", ("dram_bytes_per_s",), 2.0),)
    found, _ = fit_device(guess, measured, knob, validate=False)
    assert found.dram_bytes_per_s == pytest.approx(guess.dram_bytes_per_s / 3, rel=0.1)


def test_shared_and_own_knobs(networks):
    guess = replace(npu.device("generic-roofline"), dispatch_s=1e-6)
    devices = {"a": replace(guess, name="a"), "b": replace(guess, name="b")}
    knobs = (Knob("dispatch", ("dispatch_s",), 1.0), Knob("rate", ("macs_per_s.w*",), 1.0, 1.0))
    values = {"dispatch": np.float32(0.5), "rate": np.float32([0.0, 0.7])}
    measured = []
    for i, name in enumerate(devices):
        truth = scaled(guess, knobs, {"dispatch": 0.5, "rate": values["rate"][i]})
        measured += [
            Measurement(w, "w8a8", float(npu.latency(w, "w8a8", truth)), name)
            for w in networks.values()
        ]
    found = fit_devices(devices, measured, knobs, validate=False).devices
    assert found["a"].dispatch_s == found["b"].dispatch_s
    assert found["a"].dispatch_s == pytest.approx(1e-6 * np.exp(0.5), rel=0.05)
    ratio = found["b"].macs_per_s["w8a8"] / found["a"].macs_per_s["w8a8"]
    assert ratio == pytest.approx(np.exp(0.7), rel=0.1)
    assert start_values(knobs, 2)["rate"].shape == (2,)


def test_what_cannot_be_fitted_is_refused(networks):
    guess = npu.device("generic-roofline")
    good = Measurement(networks["wide"], "w8a8", 1e-3)
    for rows, error, message in (
        ([], DataError, "no measurements"),
        ([good._replace(latency_s=0.0)], DataError, "positive"),
        ([good._replace(group="conv9")], ModelError, "conv9"),
        ([good._replace(pair="w8a9")], ConfigError, "w8a8"),
    ):
        with pytest.raises(error, match=message):
            fit_device(guess, rows, KNOBS)
    with pytest.raises(ConfigError, match="dram_bytes_per_s"):
        fit_device(guess, [good], (Knob("b", ("dram_byte_per_s",)),))
    pair = {"a": guess, "b": npu.device("snapdragon-8-gen-3")}
    with pytest.raises(ConfigError, match="more than numbers"):
        fit_devices(pair, [good._replace(device="a")], KNOBS)


def test_hexagon_has_at_most_eight_numbers_of_a_device():
    assert sum(bool(knob.apart) for knob in HEXAGON) <= 8
    scaled(npu.device("generic-hexagon"), HEXAGON, start_values(HEXAGON, 1))


def test_measured_networks_are_explained_within_a_few_percent(data):
    rows = read_latencies(data / "npu" / "dev_latencies.csv")
    some = {"resnet18", "googlenet", "squeezenet1_1", "mobilenet_v2"}
    rows = [r for r in rows if r.device == "Samsung Galaxy S24" and r.model in some]
    works = read_graphs(data / "npu" / "graphs", some)
    measured = [m for _, m in measurements_of(rows, works)]
    device = npu.device("generic-hexagon")
    _, found = fit_device(device, measured, HEXAGON, validate=False)
    off = np.abs(found.predicted_s / np.array([m.latency_s for m in measured]) - 1)
    assert off.mean() < 0.1


def test_tables_of_latencies_are_read_strictly(tmp_path):
    path = tmp_path / "latencies.csv"
    path.write_text("model,precision,device,latency_ms\nnet,w8a8,d,0.5\nnet,float,d,x\n")
    with pytest.raises(DataError, match="line 3"):
        read_latencies(path)
    path.write_text("model,precision,device\nnet,w8a8,d\n")
    with pytest.raises(DataError, match="latency_ms"):
        read_latencies(path)
