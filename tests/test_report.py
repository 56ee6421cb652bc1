"""The report: its figures against plain numpy, its check list, and a page that stands alone."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from tiny_model import tiny_model

from jqnt import npu
from jqnt.compare import Row, clipped_share, compare
from jqnt.data import load_data
from jqnt.encodings import Encodings
from jqnt.errors import ConfigError
from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.learn.calibrate import calibrate
from jqnt.learn.quality import Quality
from jqnt.learn.staircase import Recovery, Step
from jqnt.metrics import metric_named
from jqnt.npu.layers import layer_costs
from jqnt.placement import plan
from jqnt.plan import bind
from jqnt.report import Provenance, layer_table, report, staircase_table
from jqnt.report.checks import Evidence, checks
from jqnt.rules import scheme


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(recovery of two steps, data): the tiny model in float and in W4A8."""
    folder = tmp_path_factory.mktemp("report")
    graph, params, _ = import_onnx(tiny_model(folder / "tiny.onnx"))
    x = np.random.default_rng(1).normal(size=(48, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", image=x, labels=np.zeros(48, int))
    data = load_data(folder / "data.npz", graph, batch_size=16)
    apply = lower(graph)
    laid = plan(graph, scheme("int4", "uint8"))
    frozen, encodings = freeze(graph, params, bind(calibrate(apply, params, laid, data), laid))
    device = npu.device("embedded-demo")
    work = npu.workload(graph, params)
    first = Step("FP32", 90.0, None, None, 400.0, 0.1, graph, params, params, Encodings())
    second = replace(
        first,
        name="W4 <&> A8",
        metric_float_sim=89.9,
        metric_integer=89.75,
        latency_s=float(npu.latency(work, encodings, device)),
        size_bytes=100.0,
        params=frozen,
        encodings=encodings,
        layers=layer_costs(work, encodings, device),
    )
    return Recovery((first, second), max_drop=0.5, max_latency_s=1e-3), data


@pytest.fixture(scope="module")
def whole(made):
    recovery, data = made
    return report(
        recovery,
        metric=metric_named("top1"),
        device=npu.device("embedded-demo"),
        calib=data,
        evaluation=data,
        provenance=Provenance("tiny.onnx", "0" * 64, 3, {"max_drop": 0.5}),
    )


def test_layers_are_compared_as_numpy_does(made):
    recovery, data = made
    step = recovery.chosen
    rows = {r.tensor: r for r in compare(
        step.graph, step.reference, step.params, step.encodings, list(data)
    )}  # fmt: skip
    x = np.concatenate([batch["image"] for batch in data])
    names = ("r", "logits")
    exact = lower(step.graph)(step.reference, {}, {"image": x}, want=names)
    held = dict(step.params)
    for name in ("conv.weight", "fc.weight"):
        e = step.encodings[name]
        held[name] = e.dequantize(e.quantize(held[name]))
    for name, (xn, wn) in {
        "conv.bias": ("image", "conv.weight"),
        "fc.bias": ("f", "fc.weight"),
    }.items():
        scale = step.encodings[xn].scale * step.encodings[wn].scale
        held[name] = (np.rint(held[name] / scale) * scale).astype(np.float32)
    codes = {n: step.encodings[n] for n in ("image", "r", "p", "f", "logits")}

    class Grid:
        def __init__(self, e):
            self.e = e

        def __call__(self, v):
            return jax.numpy.asarray(self.e.dequantize(self.e.quantize(np.asarray(v))))

    lossy = lower(step.graph)(held, {n: Grid(e) for n, e in codes.items()}, {"image": x}, names)
    for name in names:
        r, v = (np.asarray(a[name], np.float64) for a in (exact, lossy))
        sqnr = 10 * np.log10((r**2).sum() / ((r - v) ** 2).sum())
        np.testing.assert_allclose(rows[name].simulation.sqnr_db, sqnr, rtol=1e-3)
        cosine = (r * v).sum() / np.sqrt((r**2).sum() * (v**2).sum())
        np.testing.assert_allclose(rows[name].simulation.cosine, cosine, rtol=1e-6)
    assert rows["r"].integers.cosine > 0.999999
    with pytest.raises(ConfigError, match="no tensor 'logit'"):
        compare(step.graph, step.reference, step.params, step.encodings, data, tensors=["logit"])


def test_values_outside_the_calibrated_range_are_counted(made):
    recovery, data = made
    step = recovery.chosen
    x = np.concatenate([batch["image"] for batch in data])
    assert clipped_share(step.graph, step.encodings, data) == {"image": 0.0}
    e = step.encodings["image"]
    low, high = (e.dequantize(np.full((), q)) for q in e.format.limits)
    outside = ((3 * x < low - e.scale / 2) | (3 * x > high + e.scale / 2)).mean()
    found = clipped_share(step.graph, step.encodings, [{"image": 3 * x}])["image"]
    assert found == pytest.approx(outside) and found > 0.05


def test_the_chosen_step_is_the_first_that_meets_both(made):
    recovery, _ = made
    float_step, step = recovery.steps
    slow = replace(step, name="slow", latency_s=2e-3, metric_integer=90.0)
    poor = replace(step, name="poor", metric_integer=80.0)
    good = replace(step, name="good")

    def chosen(*steps):
        return replace(recovery, steps=(float_step, *steps)).chosen.name

    assert chosen(slow, poor, good) == "good"
    assert chosen(slow, poor) == "poor"  # nearest within the budget
    assert chosen(slow) == "slow"
    assert recovery.drop(poor) == 10.0
    assert not recovery.fits(float_step)  # its latency is not known


def test_the_document_is_json_and_repeats_the_run(whole, made):
    document = json.loads(whole.json())
    assert document == whole.document
    assert document["chosen"] == "W4 <&> A8" and document["met"]
    assert [s["metric_integer"] for s in document["steps"]] == [None, 89.75]
    assert document["steps"][1]["drop"] == pytest.approx(0.25)
    assert document["data"]["calib"]["samples"] == 48
    assert document["data"]["calib"]["sha256"] == made[1].digest
    assert {"jax", "numpy", "jqnt", "python"} <= set(document["versions"])
    layer = document["layers"][0]
    assert (layer["name"], layer["weight_bits"], layer["activation_bits"]) == ("conv", 4, 8)
    assert layer["weight_scales"] == 4
    assert sum(la["latency_s"] for la in document["layers"]) == pytest.approx(
        document["steps"][1]["latency_s"] - float(npu.device("embedded-demo").graph_s), rel=1e-5
    )


def test_an_error_metric_is_shown_as_it_is(made):
    recovery, data = made
    shown = report(
        replace(recovery, steps=tuple(replace(s, metric_float_sim=-0.5) for s in recovery.steps)),
        metric=metric_named("mse"),
        device=npu.device("embedded-demo"),
        calib=data,
        evaluation=data,
        provenance=Provenance(),
    ).document
    assert shown["steps"][0]["metric_float_sim"] == 0.5
    assert not shown["metric"]["more_is_better"]


class Page(HTMLParser):
    """Checks that tags close, and keeps what a reader sees and what a browser would fetch."""

    EMPTY = frozenset({"meta", "br", "path", "use", "rect"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_stands_alone(whole):
    page = Page(whole.html())
    assert not page.open
    assert "script" not in page.tags and "link" not in page.tags and "img" not in page.tags
    assert all(link.startswith("#") for link in page.links)  # inside its own drawings
    assert page.tags.count("svg") == 4
    text = " ".join(page.text)
    assert "W4 <&> A8" in text  # escaped in the source
    for name in ("conv", "fc", "89.75", "calibration samples", "float simulation", "budget"):
        assert name in text
    assert "None" not in text and "nan" not in text


def test_a_notebook_gets_a_part_of_a_page(whole):
    part = whole._repr_html_()
    assert "<html" not in part and "<svg" in part and part.count("<h1>") == 1


def test_terminal_tables(whole):
    from rich.console import Console

    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(staircase_table(whole.document))
    console.print(layer_table(whole.document["layers"]))
    text = console.export_text()
    assert "not on the device" in text and "89.75" in text and "meets" in text
    assert "SQNR dB" in text
    console.file.close()


def row(cosine=0.999, sqnr_db=40.0, integers=0.99999) -> Row:
    near = Quality(sqnr_db, cosine)
    return Row("t", "n", "Conv", "uint8", near, Quality(90.0, integers))


CHECKS = [
    ("calibration samples", {"calib_samples": 200}, True),
    ("calibration samples", {"calib_samples": 199}, False),
    ("lowest cosine of a layer", {"rows": (row(cosine=0.9951), row())}, True),
    ("lowest cosine of a layer", {"rows": (row(), row(cosine=0.9949))}, False),
    ("lowest SNR of a layer", {"rows": (row(sqnr_db=30.1),)}, True),
    ("lowest SNR of a layer", {"rows": (row(sqnr_db=float("inf")),)}, True),
    ("lowest SNR of a layer", {"rows": (row(sqnr_db=29.9),)}, False),
    ("integers against simulation, lowest cosine", {"rows": (row(integers=0.9998),)}, False),
    ("loss of top1", {}, True),
    ("loss of top1", {"max_drop": 0.2}, False),
    ("predicted latency", {}, True),
    ("predicted latency", {"max_latency_s": 1e-6}, False),
    ("layers that fall back to the CPU", {}, True),
    ("layers that fall back to the CPU", {"bottleneck": "cpu"}, False),
    ("slowest layer's share of the latency", {"latency_s": 1.0}, True),
    ("slowest layer's share of the latency", {"latency_s": 1e-5}, False),
    ("on-chip memory in use, at most", {"vtcm_bytes": 400.0}, True),
    ("on-chip memory in use, at most", {}, False),
    ("weights with a scale per channel", {}, True),
    ("layout of image inputs", {}, True),
]


@pytest.mark.parametrize(("name", "changes", "holds"), CHECKS)
def test_the_check_list(made, name, changes, holds):
    recovery, _ = made
    changes = dict(changes)
    step = recovery.chosen
    device = npu.device("embedded-demo")
    if "bottleneck" in changes:
        layer = replace(step.layers[0], bottleneck=changes.pop("bottleneck"))
        step = replace(step, layers=(layer, *step.layers[1:]))
    if "latency_s" in changes:
        step = replace(step, latency_s=changes.pop("latency_s"))
    if "vtcm_bytes" in changes:
        device = device.replace(vtcm_bytes=changes.pop("vtcm_bytes"))
    for key in ("max_drop", "max_latency_s"):
        if key in changes:
            recovery = replace(recovery, **{key: changes.pop(key)})
    evidence = Evidence(recovery, step, device, metric_named("top1"), 500, (row(),))
    found = {check.name: check for check in checks(replace(evidence, **changes))}
    assert found[name].holds == holds, found[name]
    assert found[name].advice and found[name].bar and found[name].figure
