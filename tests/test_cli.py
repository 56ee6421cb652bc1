"""The command line as a user meets it: right input, and every kind of wrong one."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tiny_model import tiny_model

from jqnt.cli import run
from jqnt.encodings import Encodings
from jqnt.frozen import load_frozen
from jqnt.integer import lower as lower_integers

ROOT = Path(__file__).resolve().parents[1]

RECOVERED = {"frozen", "report.json", "report.html", "model.qdq.onnx", "encodings.json"}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with model.onnx and calib.npz, whose labels are the model's own arg-max."""
    folder = tmp_path_factory.mktemp("cli")
    model = tiny_model(folder / "model.onnx")
    x = np.random.default_rng(1).normal(size=(64, 1, 8, 8)).astype(np.float32)
    (logits,) = onnxruntime.InferenceSession(model).run(None, {"image": x})
    np.savez(folder / "data.npz", image=x, labels=logits.argmax(1))
    np.savez(folder / "bare.npz", image=x)
    return folder


@pytest.fixture(scope="module")
def frozen(files) -> Path:
    """What `jqnt quantize --out` leaves."""
    out = files / "quantized"
    args = ["quantize", files / "model.onnx", "--calib", files / "data.npz", "--out", out, "--json"]
    assert run([str(a) for a in args]) == 0
    return out


@pytest.fixture
def jqnt(capsys):
    """`jqnt(*args) -> (exit code, parsed stdout)`; fails on an error."""

    def call(*args):
        capsys.readouterr()
        code = run([str(a) for a in args])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out) if "--json" in args else captured.out

    return call


def test_inspect_says_why(jqnt, files):
    found = jqnt("inspect", files / "model.onnx", "--json", "--weights", "int4")
    assert found["graph"]["operators"]["Conv"] == 1
    assert found["graph"]["parameters"] == 4 * 9 + 4 + 3 * 4 + 3
    plan = {row["tensor"]: row for row in found["plan"]}
    assert plan["conv.weight"]["format"] == "int4"
    assert plan["r"]["why"] == "onnxruntime: output of Conv 'conv'"
    assert plan["fc.bias"]["format"] == "int32"
    assert "c" not in plan  # inside the fused group
    text = jqnt("inspect", files / "model.onnx")
    assert "output of Conv 'conv'" in text


def test_rules_of_a_file_come_first(jqnt, files, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nname = "fc*"\nrole = "weight"\nformat = "int2"\n')
    plan = jqnt("inspect", files / "model.onnx", "--rules", rules, "--json")["plan"]
    formats = {row["tensor"]: row["format"] for row in plan}
    assert (formats["fc.weight"], formats["conv.weight"]) == ("int2", "int8")


def test_quantize_judges_three_times(jqnt, files):
    args = ["quantize", files / "model.onnx", "--calib", files / "data.npz"]
    args += ["--eval", files / "data.npz", "--equalize"]
    args += ["--rounding", "adaround", "--steps", 20, "--json"]
    metric = jqnt(*args)["metric"]
    assert metric["float"] == 100.0
    assert metric["float_simulation"] > 90
    assert metric["integer"] > 90
    assert "quantized, on integers" in jqnt(*args[:-1])


@pytest.mark.parametrize("metric", ["cosine", "mse"])
def test_metrics_against_the_float_network(jqnt, files, metric):
    args = ["quantize", files / "model.onnx", "--calib", files / "bare.npz"]
    found = jqnt(*args, "--eval", files / "bare.npz", "--metric", metric, "--json")["metric"]
    assert found["float"] == {"cosine": 1.0, "mse": 0.0}[metric]
    near = {"cosine": 0.99 < found["integer"] < 1, "mse": 0 < found["integer"] < 0.05}
    assert near[metric]


def test_a_frozen_folder_serves_the_other_commands(jqnt, files, frozen):
    metric = jqnt("emulate", frozen, "--eval", files / "data.npz", "--json")["metric"]
    assert metric["integer"] > 90
    rows = jqnt("compare", frozen, "--data", files / "data.npz", "--json")["tensors"]
    assert [row["tensor"] for row in rows] == ["r", "p", "f", "logits"]
    assert all(row["cosine"] > 0.99 for row in rows)
    assert "tensor" in jqnt("compare", frozen, "--data", files / "data.npz", "--tensor", "r")
    found = jqnt("profile", frozen, "--device", "embedded-demo", "--json")
    assert {layer["pair"] for layer in found["layers"]} == {"w8a8"}
    assert found["fastest_legal_s"] <= found["latency_s"] <= found["slowest_legal_s"]
    assert len(Encodings.load(frozen / "frozen" / "encodings.json")) > 4


def test_search_keeps_the_budget(jqnt, files, tmp_path):
    model, calib = files / "model.onnx", files / "data.npz"
    profile = jqnt("profile", model, "--device", "embedded-demo", "--json")
    bounds = profile["fastest_legal_s"], profile["slowest_legal_s"]
    budget_ms = 1e3 * sum(bounds) / 2
    args = ["search", model, "--calib", calib, "--eval", calib, "--device", "embedded-demo"]
    args += ["--max-latency-ms", budget_ms, "--max-size-mb", 1, "--steps", 5, "--adaround"]
    args += ["--multiplier", "pid", "--pareto", "--points", 3]
    out = tmp_path / "o"
    found = jqnt(*args, "--out", out, "--json")
    assert found["latency_s"] <= budget_ms / 1e3
    priced = jqnt("profile", out, "--device", "embedded-demo", "--json")
    groups = priced["latency_s"] - priced["conversions_s"]
    assert groups == pytest.approx(found["latency_s"], rel=1e-6)
    assert priced["size_bytes"] == pytest.approx(found["cost"]["size_bytes"])
    assert found["metric"]["float"] == 100.0
    points = json.loads((out / "front.json").read_text())
    assert len(points) == 4 and found["budget"] in [p["budget"] for p in points]
    assert all(p["cost"]["latency_s"] <= p["budget"]["latency_s"] * 1.000001 for p in points)
    assert len((out / "front.csv").read_text().splitlines()) == 5
    assert (out / "front.svg").read_text().lstrip().startswith("<?xml")
    assert json.loads((out / "certificate.json").read_text())["kinds"] == list(found["budget"])
    # the plan is a rules file: quantize places the same formats, recover takes them as its own
    again = tmp_path / "q"
    jqnt("quantize", model, "--calib", calib, "--rules", out / "plan.toml", "--out", again)
    wanted, got = (Encodings.load(o / "frozen" / "encodings.json") for o in (out, again))
    assert {n: e.format for n, e in got.items()} == {n: e.format for n, e in wanted.items()}
    args = ["recover", model, "--calib", calib, "--eval", calib, "--device", "embedded-demo"]
    args += ["--max-drop", 0, "--max-latency-ms", budget_ms, "--all", "--out", tmp_path / "r"]
    steps = jqnt(*args, "--rules", out / "plan.toml", "--json")["steps"]
    mixed = next(step for step in steps if step["name"] == "mixed precision")
    assert mixed["latency_s"] == pytest.approx(found["latency_s"], rel=1e-6)
    assert jqnt("export", out, "--to", "qdq", "--out", tmp_path / "x", "--json")["files"]


def test_recover_stops_when_it_is_good_enough(jqnt, files, tmp_path):
    model, data = files / "model.onnx", files / "data.npz"
    args = ["recover", model, "--calib", data, "--eval", data, "--device", "embedded-demo"]
    args += ["--max-drop", 5, "--max-latency-ms", 1, "--out", tmp_path / "o", "--key", 7]
    found = jqnt(*args, "--json")
    assert [step["name"] for step in found["steps"]] == ["FP32", "FP16", "W8A8"]
    assert found["met"]
    assert found["key"] == 7
    written = json.loads((tmp_path / "o" / "report.json").read_text())
    assert written == {
        key: value for key, value in found.items() if key not in ("files", "refused")
    }
    assert {path.name for path in (tmp_path / "o").iterdir()} == RECOVERED
    metric = jqnt("emulate", tmp_path / "o", "--eval", data, "--json")["metric"]
    assert metric["integer"] == found["steps"][-1]["metric_integer"]


@pytest.mark.slow
def test_the_demo_keeps_metric_and_budget(jqnt, tmp_path):
    command = re.findall(
        r"jqnt (recover .*)", (ROOT / "scripts" / "demo").read_text().replace("\\\n", "")
    )
    args = [str(ROOT / a) if a.startswith("jqnt/") else a for a in command[0].split()]
    args[args.index("--out") + 1] = str(tmp_path / "o")
    found = jqnt(*[a for a in args if a != '"$@"'], "--json")
    assert found["met"]
    chosen = next(step for step in found["steps"] if step["chosen"])
    assert chosen["latency_s"] <= 0.25e-3
    assert chosen["metric_integer"] >= found["steps"][0]["metric_float_sim"] - 0.5
    assert len({layer["weight_bits"] for layer in found["layers"] if layer["weight_bits"]}) > 1


def test_export_writes_what_was_asked_for(jqnt, files, frozen, tmp_path):
    args = ["export", frozen, "--out", tmp_path / "x", "--to"]
    found = jqnt(*args, "qdq", "--to", "encodings", "--encodings-version", "0.6.1", "--json")
    assert [Path(f).name for f in found["files"]] == ["encodings.json", "model.qdq.onnx"]
    document = json.loads((tmp_path / "x" / "encodings.json").read_text())
    assert document["version"] == "0.6.1"
    assert {"conv.weight", "fc.weight"} <= set(document["param_encodings"])
    jqnt(*args, "qop")
    x = np.load(files / "data.npz")["image"]
    qdq, qop = (
        onnxruntime.InferenceSession(tmp_path / "x" / f"model.{kind}.onnx").run(None, {"image": x})
        for kind in ("qdq", "qop")
    )
    np.testing.assert_allclose(qdq[0], qop[0], atol=0.05)
    assert (qop[0].argmax(1) == np.load(files / "data.npz")["labels"]).mean() > 0.9


TARGETS = {
    "onnx-qdq": ("onnxruntime", ["model.qdq.onnx"]),
    "onnx-qop": ("onnxruntime", ["model.qop.onnx"]),
    "aimet": ("onnxruntime", ["encodings.json"]),
    "qnn": (
        "onnxruntime",
        ["convert.sh", "htp_backend_extensions.json", "htp_config.json", "input_list.txt", "inputs",
         "model.onnx", "quantization_overrides.json"],
    ),
    "amct": ("amct", ["config.json", "model.onnx", "quant.cfg", "record.txt"]),
    "ncnn": ("ncnn", ["model.bin", "model.param", "model.table"]),
    "mnn": ("mnn", ["model.mnn.json", "model.mnn.onnx"]),
    "tflite": ("tflite", ["model.tflite"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_every_export_has_its_files(jqnt, files, tmp_path, name):
    target, expected = TARGETS[name]
    model, out = tmp_path / "m", tmp_path / "x"
    jqnt("quantize", files / "model.onnx", "--calib", files / "data.npz", "--target", target,
         "--out", model, "--json")  # fmt: skip
    extra = ["--data", files / "data.npz", "--samples", 2] if name == "qnn" else []
    found = jqnt("export", model, "--to", name, "--out", out, *extra, "--json")
    assert [Path(f).name for f in found["files"]] == expected
    if name == "qnn":
        lines = (out / "input_list.txt").read_text().splitlines()
        assert lines[1] == "image:=inputs/0001/image.raw"
        raw = np.fromfile(out / "inputs/0001/image.raw", "<f4")
        np.testing.assert_array_equal(raw, np.load(files / "data.npz")["image"][1].reshape(-1))


def test_compare_says_where_integers_and_simulation_part(jqnt, files, frozen, tmp_path):
    args = ["compare", frozen, "--data", files / "data.npz", "--json"]
    found = jqnt(*args, "--arithmetic", "tflite-reference", "--unmatched", "float",
                 "--plot", tmp_path / "p.svg")  # fmt: skip
    assert found["arithmetic"] == "tflite-reference" and (tmp_path / "p.svg").stat().st_size > 1000
    rows = {row["tensor"]: row for row in found["tensors"]}
    off = [name for name, row in rows.items() if row["off_by_one_percent"]]
    assert found["first_to_part"] == (off[0] if off else None)
    assert all(row["most_codes"] <= 2 for row in rows.values())
    jqnt("export", frozen, "--to", "aimet", "--out", tmp_path / "e", "--json")
    jqnt("export", frozen, "--to", "qnn", "--out", tmp_path / "e", "--json")
    again = jqnt("compare", tmp_path / "e" / "model.onnx", "--data", files / "data.npz", "--json",
                 "--encodings", tmp_path / "e" / "encodings.json")  # fmt: skip
    plain = {row["tensor"]: row for row in jqnt(*args)["tensors"]}
    for row in again["tensors"]:
        assert row["integer_cosine"] == pytest.approx(plain[row["tensor"]]["integer_cosine"])


def test_compare_reads_what_a_device_wrote(jqnt, files, frozen, tmp_path):
    images = np.load(files / "data.npz")["image"][:3]
    model = load_frozen(frozen)
    logits = np.array(lower_integers(model.graph, model.params, model.encodings)(
        {"image": images})["logits"])  # fmt: skip
    logits[2, 0] += 2 * model.encodings["logits"].scale
    for i, row in enumerate(logits):
        (tmp_path / f"Result_{i}").mkdir()
        row.astype("<f4").tofile(tmp_path / f"Result_{i}" / "logits.raw")
    found = jqnt("compare", frozen, "--data", files / "data.npz", "--device-outputs", tmp_path,
                 "--json")  # fmt: skip
    (row,) = [row for row in found["tensors"] if row["tensor"] == "logits"]
    assert row["device_off_by_two_percent"] == pytest.approx(100 / logits.size)
    assert row["device_most_codes"] == 2


def test_compare_tunes_to_a_device(jqnt, files, frozen, tmp_path):
    images = np.load(files / "data.npz")["image"]
    model = load_frozen(frozen)
    logits = np.array(lower_integers(model.graph, model.params, model.encodings)(
        {"image": images})["logits"])  # fmt: skip
    logits += 3 * model.encodings["logits"].scale
    for i, row in enumerate(logits):
        (tmp_path / f"Result_{i}").mkdir()
        row.astype("<f4").tofile(tmp_path / f"Result_{i}" / "logits.raw")
    args = ["--data", files / "data.npz", "--device-outputs", tmp_path, "--json"]
    found = jqnt("compare", frozen, *args, "--tune", tmp_path / "tuned")
    (row,) = found["tuned"]
    assert row["tensor"] == "logits" and row["kept"] and row["after"] < row["before"] / 2
    again = jqnt("compare", tmp_path / "tuned", *args)["tensors"]
    was, now = (
        next(row["device_sqnr_db"] for row in rows if row["tensor"] == "logits")
        for rows in (found["tensors"], again)
    )
    assert now > was + 3


def test_profile_of_a_float_model_takes_a_pair(jqnt, files):
    slow, fast = (
        jqnt("profile", files / "model.onnx", "--device", "embedded-demo", "--pair", p, "--json")
        for p in ("w8a16", "w4a8")
    )
    assert fast["latency_s"] < slow["latency_s"]
    text = jqnt("profile", files / "model.onnx", "--device", "embedded-demo", "--top", 1)
    assert "bound by" in text


def test_data_and_metrics_of_the_users(jqnt, files, tmp_path, monkeypatch):
    (tmp_path / "mine_cli.py").write_text(
        "import numpy as np\n"
        f"x = dict(np.load({str(files / 'data.npz')!r}))\n"
        "def batches():\n    yield {k: v[:32] for k, v in x.items()}\n"
        "def above(outputs, labels):\n    return (outputs['logits'].argmax(1) == labels).mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    args = ["quantize", files / "model.onnx", "--calib", "mine_cli:batches"]
    args += ["--eval", "mine_cli:batches", "--metric", "mine_cli:above", "--json"]
    metric = jqnt(*args)["metric"]
    assert (metric["float"], metric["samples"]) == (1.0, 32)


def quantize_args(**changes):
    """The arguments of a quantize that would work, changed."""
    options = {"model": "model.onnx", "calib": "data.npz", "eval": "data.npz", "out": "o"} | changes
    model = options.pop("model")
    return ["quantize", model, *(x for k, v in options.items() for x in (f"--{k}", v))]


def search_args(*more):
    """The arguments of a search, and `more`."""
    return ["search", "model.onnx", "--calib", "data.npz", "--device", "embedded-demo", *more]


def recover_args(*more):
    """The arguments of a recover, and `more`."""
    args = ["recover", "model.onnx", "--calib", "data.npz", "--eval", "data.npz", "--out", "o"]
    return [*args, "--device", "embedded-demo", *more]


WRONG = {
    "no model": (quantize_args(model="absent.onnx"), "absent.onnx: no such file"),
    "truncated model": (quantize_args(model="cut.onnx"), "cut.onnx: truncated, or not an ONNX"),
    "not a model": (quantize_args(model="text.onnx"), "text.onnx: .*not an ONNX"),
    "weights not finite": (quantize_args(model="nan.onnx"), "weight 'conv.weight' holds NaN"),
    "no data": (quantize_args(calib="absent.npz"), "absent.npz: no such file"),
    "truncated data": (quantize_args(calib="cut.npz"), "cut.npz: not an .npz file, or truncated"),
    "data not finite": (quantize_args(calib="nan.npz"), "nan.npz: array 'image' holds 1 values"),
    "empty data": (quantize_args(calib="empty.npz"), "empty.npz: holds no samples"),
    "wrong shape": (quantize_args(calib="shape.npz"), r"shape \[2, 3, 8, 8\]; the model takes \[N"),
    "wrong type": (quantize_args(calib="bytes.npz"), "of type uint8; the model takes float32"),
    "no labels": (quantize_args(eval="bare.npz"), "top1 needs labels"),
    "metric": (quantize_args(metric="top-1"), "no metric 'top-1'.*did you mean 'top1'"),
    "metric module": (quantize_args(metric="nowhere:f"), "no module named 'nowhere'"),
    "format": (quantize_args(weights="int44"), "int44|1 to 32 bits"),
    "format name": (quantize_args(weights="imt8"), "no number format 'imt8'; did you mean 'int8'"),
    "target": (quantize_args(target="onnx"), "no target 'onnx'; did you mean .*'onnxruntime'"),
    "rule": (quantize_args(rules="rules.toml"), "rule 1.*applies to no tensor.*'conv.weight'"),
    "rule key": (quantize_args(rules="keys.toml"), "rule 1: unknown 'nmae'; did you mean 'name'"),
    "out is a file": (quantize_args(out="data.npz"), "data.npz is a file"),
    "choice": (quantize_args(observer="minimax"), "'minimax' is not one of"),
    "device": (["profile", "model.onnx", "--device", "snapdragon-8"], "no device .*did you mean"),
    "budget": (
        search_args("--max-latency-ms", "0.01"),
        r"latency budget 0.01 ms is below the minimum 0.0\d+ ms",
    ),
    "budget of recover": (
        recover_args("--max-drop", "1", "--max-latency-ms", "0.01"),
        r"within 0.01 ms; the minimum is 0.0\d+ ms",
    ),
    "drop": (recover_args("--max-drop", "-1"), "at least 0 points, not -1"),
    "exclude": (
        search_args("--max-latency-ms", "1", "--exclude", "cnov"),
        "no tensor or node 'cnov' to exclude; did you mean 'conv'",
    ),
    "pair": (
        ["profile", "model.onnx", "--device", "embedded-demo", "--pair", "w3a8"],
        "has no 'w3a8'; did you mean",
    ),
    "tensor": (
        ["compare", "quantized", "--data", "data.npz", "--tensor", "logit"],
        "no tensor 'logit'.*did you mean 'logits'",
    ),
    "float model": (["emulate", "model.onnx", "--eval", "data.npz"], "is a float model; quantize"),
    "empty folder": (["emulate", "hollow", "--eval", "data.npz"], "hollow: no frozen model"),
    "export format": (["export", "quantized", "--to", "qddq", "--out", "o"], "no export .*'qdq'"),
    "encodings version": (quantize_args(**{"encodings-version": "3"}), "'3' is not one of"),
    "option": (["inspect", "model.onnx", "--wieghts", "int8"], "No such option: --wieghts"),
    "command": (["quantise", "model.onnx"], "No such command 'quantise'"),
    "argument": (["inspect"], "Missing argument 'model'"),
}


@pytest.fixture(scope="module")
def broken(files, frozen) -> Path:
    """Files that are wrong in every way of the table above."""
    whole = (files / "model.onnx").read_bytes()
    (files / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (files / "text.onnx").write_text("this is no model")
    nan = np.full((4, 1, 3, 3), np.nan, np.float32)
    tiny_model(files / "nan.onnx", **{"conv.weight": nan})
    data = (files / "data.npz").read_bytes()
    (files / "cut.npz").write_bytes(data[: len(data) // 2])
    x = np.zeros((2, 1, 8, 8), np.float32)
    np.savez(files / "empty.npz", image=x[:0])
    np.savez(files / "shape.npz", image=x.repeat(3, axis=1))
    np.savez(files / "bytes.npz", image=x.astype(np.uint8))
    x[1, 0, 2, 3] = np.inf
    np.savez(files / "nan.npz", image=x)
    (files / "rules.toml").write_text('[[rule]]\nname = "conv.wieght"\nformat = "int4"\n')
    (files / "keys.toml").write_text('[[rule]]\nnmae = "conv.weight"\n')
    (files / "hollow").mkdir()
    return files


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(case, broken, capsys, monkeypatch):
    monkeypatch.chdir(broken)
    before = {path.name for path in broken.iterdir()}
    args, message = WRONG[case]
    capsys.readouterr()
    assert run(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]
    assert {path.name for path in broken.iterdir()} == before


def test_help_names_every_command(capsys):
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    commands = "inspect quantize search emulate export profile compare recover"
    assert all(f"\n  {name} " in text for name in commands.split())
    for name in commands.split():
        assert run([name, "--help"]) == 0
        assert "--json" in capsys.readouterr().out


def test_the_console_script_is_installed():
    assert (Path(sys.executable).parent / "jqnt").exists()
