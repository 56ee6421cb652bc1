#!/usr/bin/env python3
"""The main job on real models: parity, accuracy, integers, exports, compilations, traps.

bench_main_job.py [--only ROW] [--json] [--data DIR]

ROW is one of parity, cifar10, digits, imagenet, integers, exports, compilations, traps, demo.
Everything is measured in this run; a row without a bar only informs.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
from material import DATA, FLOAT_CNNS, Images, cifar10, digits, imagenet, model_path

import jqnt
from jqnt.affine import divide, fake_quant, grid_limits
from jqnt.formats import integer_limits
from jqnt.interop.onnx_qdq import to_qdq
from jqnt.interop.onnx_qop import to_qoperator
from jqnt.learn.prices import menu_of
from jqnt.observers import exact_mse, sqnr

KEY = jax.random.key(0)
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=tuple(TABLES), help="one table")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    if not (args.data / "models").is_dir():
        print(f"error: no folder {args.data / 'models'}; give --data DIR", file=sys.stderr)
        return 2
    jqnt.keep_freed_memory()
    rows: list[Row] = []
    for name in [args.only] if args.only else TABLES:
        for found in TABLES[name](args.data):
            rows.append(found)
            if not args.json:
                show(found)
    if args.json:
        print(json.dumps(rows, indent=1))
    return 0 if all(r["holds"] is not False for r in rows) else 1


def row(name: str, figure: float, unit: str, bar: str | None, holds: bool | None, detail: str = ""):
    """One measured figure beside its bar."""
    figure = float(figure)
    return {
        "name": name, "figure": figure, "unit": unit, "bar": bar,
        "holds": None if holds is None else bool(holds), "detail": detail,
    }  # fmt: skip


def show(r: Row) -> None:
    mark = {True: "holds", False: "FAILS", None: ""}[r["holds"]]
    print(
        f"{r['name']:58} {r['figure']:>12.5g} {r['unit']:8} {r['bar'] or '':16} {mark:6} "
        f"{r['detail']}",
        flush=True,
    )


# ---------------------------------------------------------------- 1. float parity


def parity(data: Path) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    for stem in FLOAT_CNNS:
        path = model_path(data, stem)
        graph, params, _ = jqnt.import_onnx(path)
        session = reference(path.read_bytes())
        run = jqnt.session(graph, params)
        (name,) = graph.inputs
        dims = graph.info[name].shape
        fixed = isinstance(dims[0], int)
        for batch in (dims[0],) if fixed else (1, 3):
            x = rng.normal(size=(batch, *dims[1:])).astype(np.float32)
            wanted = session.run(None, {name: x})
            found = run(params, {}, {name: x})
            worst = max(
                np.abs(np.asarray(found[o]) - w).max() / np.abs(w).max()
                for o, w in zip(graph.outputs, wanted, strict=True)
            )
            yield row(f"{stem}: float parity, batch {batch}", worst, "relative", "<= 1e-4",
                      worst <= 1e-4, "max |difference| / max |onnxruntime|")  # fmt: skip


# ---------------------------------------------------------------- 2.-4. accuracy


def cifar_rows(data: Path) -> Iterator[Row]:
    images = cifar10(data)
    graph, params, _ = jqnt.import_onnx(model_path(data, "cifar10_resnet20"))
    evaluate = jqnt.evaluator(jqnt.metric_named("top1"), images.evaluation(), graph.inputs)
    float_run = jqnt.session(graph, params)
    top = evaluate(lambda x: float_run(params, {}, x))
    yield row("cifar10_resnet20: float", top, "%", None, None)
    folded = jqnt.fold_bn(*jqnt.cleanup(graph, params))
    w8 = simulated(folded, images, "int8", evaluate)
    yield row("cifar10_resnet20: W8A8", w8, "%", f">= {top - 0.5:.2f}", w8 >= top - 0.5)
    nearest = simulated(folded, images, "int4", evaluate)
    yield row("cifar10_resnet20: W4A8 per channel, nearest", nearest, "%", None, None)
    w4 = simulated(folded, images, "int4", evaluate, rounding=True)
    yield row("cifar10_resnet20: W4A8 per channel, AdaRound", w4, "%", ">= 79.0", w4 >= 79.0)
    start = time.perf_counter()
    found = jqnt.recover(
        graph, params, images.calibration(100), evaluate, jqnt.npu.device("snapdragon-8-gen-3"),
        max_drop=0.5, max_latency_s=3e-4, run_all=True, key=KEY,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    steps = "; ".join(f"{s.name} {s.metric:.2f} in {s.seconds:.0f} s" for s in found.steps)
    yield row("cifar10_resnet20: recover --all", seconds, "s", "< 300", seconds < 300, steps)


def digits_rows(data: Path) -> Iterator[Row]:
    images = digits(data)
    graph, params, _ = jqnt.import_onnx(model_path(data, "digits_mbv2_skew_bn"))
    evaluate = jqnt.evaluator(jqnt.metric_named("top1"), images.evaluation(), graph.inputs)
    folded = jqnt.fold_bn(*jqnt.cleanup(graph, params))
    even = jqnt.equalize(*folded)
    x = jnp.asarray(images.eval[:64])
    before, after = (jqnt.lower(g)(p, {}, {"input": x}) for g, p in (folded, even))
    moved = max(
        float(jnp.abs(after[o] - before[o]).max() / jnp.abs(before[o]).max()) for o in before
    )
    yield row("digits_mbv2_skew_bn: equalization moves the float output by", moved, "relative",
              "<= 1e-5", moved <= 1e-5)  # fmt: skip
    for weights, bar, peer in (("int8", 97.3, 97.66), ("int4", 95.5, 95.33)):
        label = f"digits_mbv2_skew_bn: W{weights[3:]}A8 per tensor"
        plain = simulated(folded, images, weights, evaluate, per_channel=False)
        yield row(label, plain, "%", None, None, "without equalization")
        found = simulated(even, images, weights, evaluate, per_channel=False)
        yield row(f"{label}, equalized", found, "%", f">= {bar}", found >= bar, f"AIMET {peer}")


def imagenet_rows(data: Path) -> Iterator[Row]:
    images = imagenet(data, "unit")
    graph, params, _ = jqnt.import_onnx(model_path(data, "imagenet_mobilenetv2_10"))
    evaluate = jqnt.evaluator(jqnt.metric_named("top1"), images.evaluation(50), graph.inputs)
    folded = jqnt.fold_bn(*jqnt.cleanup(graph, params))
    w8 = simulated(folded, images, "int8", evaluate)
    yield row("imagenet_mobilenetv2_10: W8A8 per channel", w8, "%", ">= 86.5", w8 >= 86.5)
    nearest = simulated(folded, images, "int4", evaluate)
    yield row("imagenet_mobilenetv2_10: W4A8, nearest", nearest, "%", None, None)
    start = time.perf_counter()
    w4 = simulated(folded, images, "int4", evaluate, rounding=True)
    detail = f"{time.perf_counter() - start:.0f} s, ranges and evaluation included"
    yield row("imagenet_mobilenetv2_10: W4A8, AdaRound", w4, "%", ">= 75", w4 >= 75, detail)


def quantized(
    network: tuple[jqnt.Graph, Any], images: Images, weights: str, *,
    per_channel: bool = True, rounding: bool = False,
):  # fmt: skip
    """(params, encodings) of a uniform plan: SQNR ranges, and learned rounding if asked."""
    graph, params = network
    batches = images.calibration()
    plan = jqnt.plan(graph, jqnt.scheme(weights, "uint8", per_channel=per_channel))
    theta = jqnt.calibrate(
        jqnt.lower(graph), params, plan, batches, observer=sqnr(), weight_observer=exact_mse()
    )
    if rounding:
        theta = jqnt.adaround(graph, params, theta, plan, batches, key=KEY)
    return jqnt.freeze(graph, params, jqnt.bind(theta, plan))


def simulated(network, images: Images, weights: str, evaluate: Callable, **options: Any) -> float:
    """The metric of the float simulation of `quantized(...)`."""
    frozen, encodings = quantized(network, images, weights, **options)
    run, qparams = jqnt.session(*network), jqnt.thaw(encodings)
    return evaluate(lambda inputs: run(frozen, qparams, inputs))


# ---------------------------------------------------------------- 5.-6. integers and exports


def integer_rows(data: Path) -> Iterator[Row]:
    for stem, images in material(data):
        network = jqnt.fold_bn(*jqnt.cleanup(*jqnt.import_onnx(model_path(data, stem))[:2]))
        frozen, encodings = quantized(network, images, "int8")
        run = jqnt.integer.lower(network[0], frozen, encodings)
        model = to_qoperator(network[0], frozen, encodings)
        session = reference(model.SerializeToString())
        differ = total = 0
        for at in range(0, 512, 64):
            x = images.eval[at : at + 64]
            (wanted,) = session.run(None, {"input": x})
            (found,) = run({"input": x}).values()
            differ, total = differ + int((np.asarray(found) != wanted).sum()), total + wanted.size
        yield row(f"{stem}: integers against onnxruntime", differ, "logits", "0",
                  differ == 0, f"of {total}; QOperator, not optimized, x64 precision")  # fmt: skip


def export_rows(data: Path) -> Iterator[Row]:
    for stem, images in material(data):
        network = jqnt.fold_bn(*jqnt.cleanup(*jqnt.import_onnx(model_path(data, stem))[:2]))
        frozen, encodings = quantized(network, images, "int8")
        model = to_qdq(network[0], frozen, encodings)
        onnx.checker.check_model(model, full_check=True)
        session = reference(model.SerializeToString())
        simulation, qparams = jqnt.session(*network), jqnt.thaw(encodings)
        (name,) = network[0].outputs
        step = float(encodings[name].scale)
        top = {"onnxruntime": 0, "simulation": 0}
        near = total = 0
        for batch in images.evaluation():
            x = batch["input"]
            (wanted,) = session.run(None, {"input": x})
            found = np.asarray(simulation(frozen, qparams, {"input": x})[name])
            near += int((np.abs(found - wanted) <= 1.01 * step).sum())
            total += wanted.size
            top["onnxruntime"] += int((wanted.argmax(1) == batch["labels"]).sum())
            top["simulation"] += int((found.argmax(1) == batch["labels"]).sum())
        apart = 100 * abs(top["onnxruntime"] - top["simulation"]) / len(images.labels)
        yield row(f"{stem}: top-1 of the QDQ export against the simulation", apart, "points",
                  "<= 0.1", apart <= 0.1, f"onnxruntime, ORT_DISABLE_ALL, {top}")  # fmt: skip
        share = 100 * near / total
        yield row(f"{stem}: logits within 1 LSB", share, "%", ">= 99.9", share >= 99.9)


def material(data: Path) -> Iterator[tuple[str, Images]]:
    yield "cifar10_resnet20", cifar10(data)
    yield "digits_resnet8_bn", digits(data)


def reference(model: bytes) -> ort.InferenceSession:
    """onnxruntime without graph optimizations, on the CPU.

    Where a CPU has no VNNI, its products of uint8 with int8 saturate pairs at 16 bits unless the
    session asks for precision; elsewhere the option changes nothing.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


# ---------------------------------------------------------------- 7. one program for all budgets


def compilation_rows(data: Path) -> Iterator[Row]:
    graph, params, _ = jqnt.import_onnx(jqnt.demo.MODEL)
    graph, params = jqnt.fold_bn(*jqnt.cleanup(graph, params))
    device = jqnt.npu.device("embedded-demo")
    workload = jqnt.npu.workload(graph, params)
    fast, slow = (float(x) for x in jqnt.npu.latency_range(jqnt.npu.tables(workload, device)))
    yield row("demo: slowest over fastest legal plan", slow / fast, "ratio", ">= 1.5",
              slow / fast >= 1.5, f"{1e3 * fast:.3f} to {1e3 * slow:.3f} ms")  # fmt: skip
    batches = list(jqnt.load_data(jqnt.demo.CALIB, graph))[:2]
    plan = jqnt.with_choices(jqnt.plan(graph), graph, menu_of(device))
    theta = jqnt.calibrate(jqnt.lower(graph), params, plan, batches)
    problem = jqnt.space(graph, params, plan, theta, jqnt.prices(plan, workload, device), batches)
    counts = []
    for share in (0.3, 0.5, 0.7, 0.9):
        with Compilations() as seen:
            jqnt.search(problem, [fast + share * (slow - fast)], steps=50, key=KEY)
        counts.append(seen.count)
    yield row("demo: programs compiled for the second to fourth budget", sum(counts[1:]),
              "programs", "0", sum(counts[1:]) == 0, f"first budget: {counts[0]}")  # fmt: skip


class Compilations:
    """Counts what XLA compiles inside a `with`."""

    def __enter__(self):
        self.count, self.on = 0, True
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def _heard(self, event: str, duration: float, **_: Any) -> None:
        if self.on and event == "/jax/core/compile/backend_compile_duration":
            self.count += 1

    def __exit__(self, *_: object) -> None:
        self.on = False


# ---------------------------------------------------------------- 8. traps


def trap_rows(data: Path) -> Iterator[Row]:
    for stem in ("cifar10_resnet20", "digits_mbv2_bn"):
        ratio, detail = scan_ratio(model_path(data, stem))
        yield row(f"{stem}: training step in a scan over one in a jit", ratio, "ratio", "<= 1.2",
                  ratio <= 1.2, detail)  # fmt: skip
    rng = np.random.default_rng(0)
    wrong = total = 0
    for scale in rng.uniform(1e-3, 1, 200).astype(np.float32):
        x = (np.arange(-128, 128, dtype=np.float32) + np.float32(0.5)) * scale
        wanted = np.clip(np.rint(x / scale), -128, 127) * scale
        found = quantize(jnp.asarray(x), scale)
        wrong, total = wrong + int((np.asarray(found) != wanted).sum()), total + x.size
    yield row("fake-quantization against numpy's division on ties", wrong, "values", "0",
              wrong == 0, f"of {total}")  # fmt: skip
    differ = sum(
        tuple(map(float, limits(jnp.float32(bits), signed)))
        != tuple(map(np.float32, integer_limits(bits, signed)))
        for bits in range(1, 33)
        for signed in (True, False)
    )
    yield row("limits of 1 to 32 bits that are not the exact integer's float32", differ, "grids",
              "0", differ == 0)  # fmt: skip
    x = jnp.asarray(rng.normal(size=10**6), jnp.float32)
    s = jnp.float32(0.0173)
    apart = int((np.asarray(jax.jit(divide)(x, s)) != np.asarray(x) / np.float32(s)).sum())
    yield row("quotients that differ from the division", apart, "values", "0", apart == 0, "of 1e6")


@jax.jit
def quantize(x: jax.Array, scale: jax.Array) -> jax.Array:
    return fake_quant(x, scale, jnp.float32(0), jnp.float32(-128), jnp.float32(127))


limits = jax.jit(grid_limits, static_argnums=1)


def scan_ratio(path: Path, steps: int = 4, repeats: int = 7) -> tuple[float, str]:
    """Medians of a training step of batch 32, alternating between the two."""
    graph, params, _ = jqnt.import_onnx(path)
    graph, params = jqnt.fold_bn(*jqnt.cleanup(graph, params))
    apply = jqnt.lower(graph)
    shape = graph.info["input"].shape[1:]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(32, *shape)), jnp.float32)
    params = jax.device_put(params)

    def step(params: Any, x: jax.Array) -> Any:
        def loss(p: Any) -> jax.Array:
            return sum(jnp.mean(y**2) for y in apply(p, {}, {"input": x}).values())

        return jax.tree.map(lambda p, g: p - 1e-6 * g, params, jax.grad(loss)(params))

    plain = jax.jit(step)
    looped = jax.jit(lambda p, x: jax.lax.scan(lambda p, _: (step(p, x), None), p, length=steps)[0])
    times: dict[str, list[float]] = {"jit": [], "scan": []}
    for repeat in range(repeats + 1):
        for name, function, per in (("jit", plain, 1), ("scan", looped, steps)):
            calls = steps if name == "jit" else 1
            start = time.perf_counter()
            for _ in range(calls):
                result = function(params, x)
            jax.block_until_ready(result)
            if repeat:
                times[name].append((time.perf_counter() - start) / (calls * per))
    jit, scan = (statistics.median(times[name]) for name in ("jit", "scan"))
    return scan / jit, f"{1e3 * scan:.1f} ms against {1e3 * jit:.1f} ms"


# ---------------------------------------------------------------- the demo


def demo_rows(data: Path) -> Iterator[Row]:
    graph, params, _ = jqnt.import_onnx(jqnt.demo.MODEL)
    calib, judged = (jqnt.load_data(p, graph) for p in (jqnt.demo.CALIB, jqnt.demo.EVAL))
    evaluate = jqnt.evaluator(jqnt.metric_named("top1"), judged, graph.inputs)
    start = time.perf_counter()
    found = jqnt.recover(
        graph, params, list(calib), evaluate, jqnt.npu.device("embedded-demo"),
        max_drop=0.5, max_latency_s=2.5e-4, run_all=True, key=KEY,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    steps = "; ".join(f"{s.name} {s.metric:.2f}" for s in found.steps)
    yield row("demo: recover --all", seconds, "s", "< 120", seconds < 120, steps)
    meets = [s.name for s in found.steps if found.meets(s)]
    yield row("demo: steps that meet target and budget", len(meets), "steps", ">= 1", bool(meets),
              ", ".join(meets))  # fmt: skip


TABLES: dict[str, Callable[[Path], Iterator[Row]]] = {
    "parity": parity,
    "cifar10": cifar_rows,
    "digits": digits_rows,
    "imagenet": imagenet_rows,
    "integers": integer_rows,
    "exports": export_rows,
    "compilations": compilation_rows,
    "traps": trap_rows,
    "demo": demo_rows,
}

if __name__ == "__main__":
    sys.exit(main())
