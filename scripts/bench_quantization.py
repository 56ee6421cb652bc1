#!/usr/bin/env python3
"""The quantization core on real models: accuracy, fidelity to onnxruntime, calibration, cost.

bench_quantization.py [--only TABLE] [--model MODEL] [--json] [--data DIR]

TABLE is one of accuracy, quantizer, groups, integers, calibration, cost, peer; MODEL, with accuracy
and groups, is one file's stem. Everything is measured in this run; a row without a bar only
informs. The bars of `accuracy` are those of AIMET 2.42 on the same files (weights symmetric,
activations asymmetric), less the margin that the row names. The whole takes half an hour on two
cores, most of it `groups`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
from material import DATA, cifar10, digits, imagenet, model_path
from onnx import TensorProto, helper

from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.interop.onnx_qdq import to_qdq
from jqnt.learn.calibrate import calibrate
from jqnt.memory import keep_freed_memory
from jqnt.observers import exact_mse, minmax, sqnr
from jqnt.placement import plan
from jqnt.plan import bind
from jqnt.quantizers import Affine
from jqnt.rules import scheme
from jqnt.thaw import thaw
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.equalize import equalize
from jqnt.transforms.fold_bn import fold_bn

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=tuple(TABLES), help="one table")
    parser.add_argument("--model", help="one model of the tables accuracy and groups")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    if not (args.data / "models").is_dir():
        print(f"error: no folder {args.data / 'models'}; give --data DIR", file=sys.stderr)
        return 2
    keep_freed_memory()
    rows: list[Row] = []
    for name in [args.only] if args.only else TABLES:
        given = (args.data, args.model) if name in ("accuracy", "groups") else (args.data,)
        for found in TABLES[name](*given):
            rows.append(found)
            if not args.json:
                show(found)
    if args.json:
        print(json.dumps(rows, indent=1))
    return 0 if all(r["holds"] is not False for r in rows) else 1


def row(name: str, figure: float, unit: str, bar: str | None, holds: bool | None, detail: str = ""):
    """One measured figure beside its bar."""
    return {
        "name": name, "figure": float(figure), "unit": unit, "bar": bar,
        "holds": None if holds is None else bool(holds), "detail": detail,
    }  # fmt: skip


def show(r: Row) -> None:
    mark = {True: "holds", False: "FAILS", None: ""}[r["holds"]]
    print(
        f"{r['name']:58} {r['figure']:>12.5g} {r['unit']:8} {r['bar'] or '':16} {mark:6} "
        f"{r['detail']}",
        flush=True,
    )


def network(data: Path, stem: str, equalized: bool = False):
    """(graph, params), cleaned and folded."""
    graph, params, _ = import_onnx(model_path(data, stem))
    graph, params = fold_bn(*cleanup(graph, params))
    return equalize(graph, params) if equalized else (graph, params)


# ------------------------------------------------------------------ accuracy

AIMET = (
    # model, weights, per channel, tf-enhanced, equalized, AIMET's top-1, margin
    ("digits_resnet8_bn", "int8", False, False, False, 97.44, 0.3),
    ("digits_resnet8_bn", "int8", False, True, False, 97.66, 0.3),
    ("digits_resnet8_bn", "int8", True, False, False, 97.55, 0.3),
    ("digits_resnet8_bn", "int4", True, False, False, 96.89, 0.5),
    ("digits_mbv2_bn", "int8", False, False, False, 97.44, 0.3),
    ("digits_mbv2_bn", "int8", False, True, False, 97.66, 0.3),
    ("digits_mbv2_bn", "int8", True, False, False, 97.89, 0.3),
    ("digits_mbv2_bn", "int4", True, False, False, 97.11, 0.5),
    ("digits_mbv2_skew_bn", "int8", False, False, False, 95.77, 0.3),
    ("digits_mbv2_skew_bn", "int4", True, False, False, 85.09, 0.5),
    ("digits_mbv2_skew_bn", "int8", False, False, True, 97.66, 0.3),
    ("digits_mbv2_skew_bn", "int4", False, False, True, 95.33, 0.5),
)


def accuracy(data: Path, only: str | None = None) -> Iterator[Row]:
    images = digits(data)
    for stem, weights, per_channel, enhanced, equalized, peer, margin in AIMET:
        if only not in (None, stem):
            continue
        graph, params = network(data, stem, equalized)
        laid = plan(graph, scheme(weights, per_channel=per_channel))
        theta = calibrate(
            lower(graph),
            params,
            laid,
            images.calibration(64),
            observer=sqnr() if enhanced else minmax(),
            weight_observer=exact_mse(clip_weight=3.0) if enhanced else minmax(),
            quantized_weights=True,  # as AIMET calibrates
        )
        logits = jax.jit(lower(graph))(params, bind(theta, laid), {"input": images.eval})["logits"]
        found = 100 * (np.asarray(logits).argmax(1) == images.labels).mean()
        kind = ["per tensor", "per channel"][per_channel] + (" tf-enhanced" if enhanced else "")
        name = f"{stem} W{weights[3:]}A8 {kind}{' + CLE' if equalized else ''}"
        yield row(name, found, "% top-1", f">= {peer - margin:.2f}", found >= peer - margin)


# ------------------------------------------------------------------ one quantizer


def quantizer(data: Path) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    for name, kind, signed in (
        ("uint8", TensorProto.UINT8, False),
        ("int8", TensorProto.INT8, True),
    ):
        scale, zero = np.float32(0.0173), 3
        ties = (rng.integers(-300, 300, 50_000) + 0.5).astype(np.float32) * scale
        x = np.concatenate([ties, rng.normal(size=950_000).astype(np.float32) * 2])
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ]
        initial = [
            helper.make_tensor("s", TensorProto.FLOAT, [], [float(scale)]),
            helper.make_tensor("z", kind, [], [zero]),
        ]
        info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N"]) for n in "xy"]
        graph = helper.make_graph(nodes, "q", info[:1], info[1:], initial)
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        expected = outputs(reference(model), {"x": x})["y"]
        ours = Affine(jnp.float32(scale), jnp.float32(zero), jnp.float32(8), signed)
        found = jax.jit(lambda quantizer, x: quantizer(x))(ours, jnp.asarray(x))
        different = int((np.asarray(found) != expected).sum())
        yield row(f"{name} quantizer against onnxruntime", different, "of 1e6", "0", different == 0)


# ------------------------------------------------------------------ groups and free running


@dataclass(frozen=True, eq=False)
class Case:
    """A model with its calibration and evaluation batches, and what decides a sample."""

    stem: str
    calib: list[dict[str, np.ndarray]]
    eval: list[dict[str, np.ndarray]]
    decide: Callable[[dict[str, np.ndarray]], np.ndarray]


def cases(data: Path, only: str | None) -> Iterator[Case]:
    """Every float model of the folder that material knows, each with its own data; or one."""
    unit = standard = None
    for path in sorted((data / "models").glob("*.onnx")):
        stem = path.stem
        if only is not None and stem != only:
            continue
        if stem.startswith("digits_"):
            images = digits(data)
        elif stem.startswith("cifar10_"):
            images = cifar10(data)
        elif stem == "imagenet_mobilenetv2_10":
            images = unit = unit or imagenet(data, "unit")
        elif stem == "imagenet_mobilenetv1_025":
            images = standard = standard or imagenet(data, "standard")
        elif stem == "ultraface_rfb320":
            photos = [{"input": x[None]} for x in faces(data, 24)]
            yield Case(stem, photos[:8], photos[8:], lambda out: out["scores"][0, :, 1] > 0.5)
            continue
        elif stem == "minilm_l6_stsb":
            calib, sentences = tokens(data)
            yield Case(stem, calib, sentences, lambda out: out["sentence_embedding"])
            continue
        elif stem == "silero_vad_16k":
            heard = speech(data)
            yield Case(stem, heard[:4], heard[4:], lambda out: out["output"][:, 0] > 0.5)
            continue
        else:
            continue
        size = len(images.eval)
        held = [{"input": images.eval[:8]}]
        held += [{"input": images.eval[i : i + 50]} for i in range(8, size, 50)]
        yield Case(stem, images.calibration(20)[:10], held, lambda out: out["logits"].argmax(1))


class Forced:
    """In place of a quantizer: keeps what it is given, passes on what onnxruntime had there."""

    def __init__(self, seen: dict[str, Any], name: str, value: Any):
        self.seen, self.name, self.value = seen, name, value

    def __call__(self, x: Any) -> Any:
        self.seen[self.name] = x
        return self.value


def groups(data: Path, only: str | None = None) -> Iterator[Row]:
    """Every tensor between two quantizers from onnxruntime's own quantized inputs, and both
    networks running freely on the same encodings."""
    for case in cases(data, only):
        graph, params = network(data, case.stem)
        laid = plan(graph)
        qparams = bind(calibrate(lower(graph), params, laid, case.calib), laid)
        frozen, encodings = freeze(graph, params, qparams)
        model = to_qdq(graph, frozen, encodings)
        yield from by_group(case, graph, params, qparams, encodings, model)
        yield from agreement(case, graph, params, qparams, model)


def by_group(case: Case, graph, params, qparams, encodings, model) -> Iterator[Row]:
    carriers = [n for n in encodings if n not in params and n not in graph.constants]
    made = {
        name: name if name in graph.outputs else f"{name}_DequantizeLinear_Output"
        for name in carriers
    }
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {o.name for o in shown.graph.output}
    for name in made.values():
        if name not in known:
            shown.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = reference(shown)
    inner = {n: q for n, q in qparams.items() if n in params}

    @jax.jit
    def run(params, inner, theirs, inputs):
        seen: dict[str, Any] = {}
        forced = {name: Forced(seen, name, value) for name, value in theirs.items()}
        lower(graph)(params, inner | forced, inputs)
        return seen

    different = total = far = 0
    for inputs in case.eval[:1]:
        out = outputs(session, inputs)
        theirs = {name: out[made[name]] for name in carriers}
        exact = jax.device_get(run(params, inner, theirs, inputs))
        for name, value in exact.items():
            encoding = encodings[name]
            ours, codes = encoding.quantize(value), encoding.quantize(theirs[name])
            wrong = ours != codes
            total, different = total + wrong.size, different + int(wrong.sum())
            steps = (value / encoding.expand(encoding.scale, value.shape))[wrong]
            tie = np.abs(np.abs(steps - np.floor(steps)) - 0.5) < 1e-4
            far += int((~(tie & (np.abs(ours - codes)[wrong] <= 1))).sum())
    share = 100 * (1 - different / total)
    detail = f"{different} of {total} codes, {len(exact)} tensors"
    yield row(f"{case.stem}: equal codes by group", share, "%", ">= 99.99", share >= 99.99, detail)
    yield row(f"{case.stem}: others not 1 LSB at a tie", far, "elements", "0", far == 0)


def agreement(case: Case, graph, params, qparams, model) -> Iterator[Row]:
    """Both networks by themselves; and, as a yardstick, onnxruntime against its own fusions."""
    session, apply = reference(model), jax.jit(lower(graph))
    theirs = [case.decide(outputs(session, inputs)) for inputs in case.eval]
    ours = [case.decide(jax.device_get(apply(params, qparams, x))) for x in case.eval]
    share, detail = agreed(ours, theirs)
    name = f"{case.stem}: free running, decisions agree"
    yield row(name, share, "%", ">= 99.9", share >= 99.9, detail)
    session = reference(model, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    fused = [case.decide(outputs(session, inputs)) for inputs in case.eval]
    share, detail = agreed(fused, theirs)
    name = f"{case.stem}: onnxruntime's own, fused and not"
    yield row(name, share, "%", None, None, detail)


def agreed(some: list[np.ndarray], others: list[np.ndarray]) -> tuple[float, str]:
    """The share of equal decisions, or of embeddings with a cosine above 0.9999."""
    a, b = np.concatenate(some), np.concatenate(others)
    if a.ndim == 1:
        return 100 * float((a == b).mean()), f"{int((a != b).sum())} of {a.size} differ"
    cosines = (a * b).sum(1)
    detail = f"embeddings with cosine > 0.9999; the least {cosines.min():.6f}"
    return 100 * float((cosines > 0.9999).mean()), detail


def faces(data: Path, count: int) -> np.ndarray:
    """Photos as the face detector reads them: 240 x 320, (x - 127) / 128."""
    crops = imagenet(data, "unit").eval[:count]
    pixels = (crops * 127.5 + 127.5 - 127) / 128
    wide = np.repeat(np.repeat(pixels, 2, 2), 2, 3)[:, :, :240, :320]
    return np.ascontiguousarray(wide, np.float32)


def speech(data: Path, size: int = 32) -> list[dict[str, np.ndarray]]:
    """Windows of 512 samples after the last 64, each with the state of a fresh start."""
    with np.load(data / "speech_16k.npz") as file:
        wave = file["audio"].astype(np.float32).reshape(-1) / 32768
    windows = np.stack([wave[i : i + 576] for i in range(0, len(wave) - 576, 512)])
    state, rate = np.zeros((2, size, 128), np.float32), np.asarray(16000, np.int64)
    starts = range(0, len(windows) - size + 1, size)
    return [{"input": windows[i : i + size], "state": state, "sr": rate} for i in starts]


def tokens(data: Path) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Calibration and evaluation sentences of STS-B."""
    with np.load(data / "stsb_tokens.npz") as file:

        def batches(split: str, count: int) -> list[dict[str, np.ndarray]]:
            ids, mask = file[f"{split}_ids_a"][:count], file[f"{split}_mask_a"][:count]
            return [
                {
                    "input_ids": ids[i : i + 32].astype(np.int64),
                    "attention_mask": mask[i : i + 32].astype(np.int64),
                    "token_type_ids": np.zeros_like(ids[i : i + 32], np.int64),
                }
                for i in range(0, count, 32)
            ]

        return batches("calib", 64), batches("eval", 128)


def integers(data: Path) -> Iterator[Row]:
    """The imported integer network on its photos, in float simulation."""
    graph, params, encodings = import_onnx(model_path(data, "imagenet_mobilenetv2_10_int8_qdq"))
    images = imagenet(data, "unit")
    pixels = np.rint((images.eval + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    name, run, qparams = graph.inputs[0], jax.jit(lower(graph)), thaw(encodings)
    found = [
        int(np.asarray(run(params, qparams, {name: x[None]})[graph.outputs[0]]).argmax()) - 1
        for x in pixels
    ]
    score = 100 * float((np.asarray(found) == images.labels).mean())
    bar = abs(score - 87.2) <= 0.2 + 1e-9  # one of 500 photos is 0.2
    yield row("imagenet_mobilenetv2_10_int8_qdq, imported", score, "% top-1", "87.2 +- 0.2", bar)


def reference(
    model: onnx.ModelProto, level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL
) -> ort.InferenceSession:
    """onnxruntime, unless told otherwise with its optimizations off."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = level
    options.intra_op_num_threads = 2
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def outputs(session: ort.InferenceSession, x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs by name."""
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, x), strict=True))


# ------------------------------------------------------------------ calibration


def calibration(data: Path) -> Iterator[Row]:
    graph, params = network(data, "imagenet_mobilenetv2_10")
    images = imagenet(data, "unit")
    for name, observer, bar in (("min-max", minmax(), None), ("SQNR", sqnr(), 20.0)):
        start = time.perf_counter()
        theta = calibrate(
            lower(graph), params, plan(graph), images.calibration(20), observer=observer
        )
        jax.block_until_ready(theta)
        spent = time.perf_counter() - start
        holds = None if bar is None else spent <= bar
        text = None if bar is None else f"<= {bar:g}"
        yield row(
            f"MobileNetV2, 200 photos, {name}", spent, "s", text, holds, "compilation included"
        )
    peaks = {}
    for count in (40, 200):
        reset_peak()
        batches = ({"input": images.calib[i : i + 20]} for i in range(0, count, 20))
        jax.block_until_ready(calibrate(lower(graph), params, plan(graph), batches))
        peaks[count] = peak_mib()
    ratio = peaks[200] / peaks[40]
    detail = f"{peaks[200]:.0f} MiB over {peaks[40]:.0f} MiB, the photos included"
    holds = ratio <= 1.05
    yield row("peak memory, 200 photos over 40", ratio, "times", "<= 1.05", holds, detail)


def reset_peak() -> None:
    """Linux forgets how much memory this process ever had."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The most resident memory since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


# ------------------------------------------------------------------ cost


def cost(data: Path) -> Iterator[Row]:
    """A W8A8 forward over a float forward, both compiled, in turns."""
    for stem, shape in (
        ("cifar10_resnet20", (32, 3, 32, 32)),
        ("imagenet_mobilenetv2_10", (32, 3, 224, 224)),
    ):
        graph, params = network(data, stem)
        x = {"input": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
        laid = plan(graph)
        qparams = bind(calibrate(lower(graph), params, laid, [x]), laid)
        medians = timed(jax.jit(lower(graph)), params, qparams, x)
        ratio = medians["quantized"] / medians["float"]
        detail = f"{medians['quantized']:.1f} ms over {medians['float']:.1f} ms"
        yield row(
            f"{stem}: W8A8 over float, batch 32", ratio, "times", "<= 1.25", ratio <= 1.25, detail
        )


def peer(data: Path) -> Iterator[Row]:
    """aimet-onnx's simulator and ours on the same files and batches, W8A8, in turns."""
    python = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
    if not python.exists():
        yield row("aimet-onnx's simulator", 0, "times", ">= 4", False, "run scripts/peers first")
        return
    images = digits(data)
    for stem in ("digits_resnet8_bn", "digits_mbv2_bn"):
        path = model_path(data, stem)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "data.npz"
            np.savez(file, calib=images.calib, x=images.eval, labels=images.labels)
            script = Path(__file__).with_name("simulate_with_aimet.py")
            ran = subprocess.run([python, script, path, file], capture_output=True, text=True)
        if ran.returncode:
            last = ran.stderr.strip().splitlines()[-1]
            yield row(f"{stem}: over aimet-onnx", 0, "times", ">= 4", False, last)
            continue
        theirs = json.loads(ran.stdout.strip().splitlines()[-1])
        graph, params = network(data, stem)
        laid = plan(graph)
        qparams = bind(calibrate(lower(graph), params, laid, images.calibration(64)), laid)
        medians = timed(jax.jit(lower(graph)), params, qparams, {"input": images.eval[:64]})
        ratio = theirs["sim_ms"] / medians["quantized"]
        detail = f"{medians['quantized']:.2f} ms against {theirs['sim_ms']:.2f} ms, batch 64"
        yield row(f"{stem}: faster than aimet-onnx", ratio, "times", ">= 4", ratio >= 4, detail)
        yield row(f"{stem}: aimet-onnx W8A8 here", theirs["top1"], "% top-1", None, None)


def timed(run, params, qparams, x) -> dict[str, float]:
    """Median milliseconds of the float and of the quantized forward, in turns."""
    times: dict[str, list[float]] = {"float": [], "quantized": []}
    for _ in range(14):
        for kind, given in (("float", {}), ("quantized", qparams)):
            start = time.perf_counter()
            jax.block_until_ready(run(params, given, x))
            times[kind].append(1e3 * (time.perf_counter() - start))
    return {kind: statistics.median(spent[2:]) for kind, spent in times.items()}


TABLES = {
    "accuracy": accuracy,
    "quantizer": quantizer,
    "groups": groups,
    "integers": integers,
    "calibration": calibration,
    "cost": cost,
    "peer": peer,
}

if __name__ == "__main__":
    sys.exit(main())
