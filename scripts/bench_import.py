#!/usr/bin/env python3
"""Import, inference, training step and memory of ONNX files against onnxruntime, in one run.

bench_import.py [MODEL ...] [--batch N] [--json] [--data DIR]

Without files: the models with bars of their own, the light CNNs that onnx ships, and chains of
250 and 1,000 nodes. Ratios are medians of calls in bursts that alternate between the libraries.
A row without a bar only informs. Training is forward plus backward with respect to all weights,
over the forward.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
INFERENCE = {  # stem -> (batches, bar)
    "imagenet_mobilenetv2_10": ((1, 8), 2.5),
    "cifar10_resnet20": ((32,), 2.0),
    "cifar10_resnet56": ((32,), 2.0),
    "minilm_l6_stsb": ((16,), 1.4),
}
TRAINING = ("cifar10_resnet20", "imagenet_mobilenetv2_10", "minilm_l6_stsb")
IMPORT_S = {"minilm_l6_stsb": 2.0}
SYMBOLS = {"seq": 64, "sequence": 576}
SCALARS = {"sr": 16000}
STEPS = 4
BURST, REST_S = 3, 0.05
CHAINS = (250, 1000)
LINEAR = 1.3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--batch", type=int, help="one batch size for everything")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--memory-of", choices=("jqnt", "onnxruntime"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    models = args.models or [args.data / "models" / f"{stem}.onnx" for stem in INFERENCE]
    if missing := [str(path) for path in models if not path.is_file()]:
        print(f"no such file: {', '.join(missing)}", file=sys.stderr)
        return 2
    if args.memory_of:
        print(growth(args.memory_of, models[0], args.batch or 1))
        return 0
    rows = []
    for found in measured(models, args.batch, everything=not args.models):
        rows.append(found)
        if not args.json:
            show(found)
    if args.json:
        print(json.dumps(rows, indent=1))
    return 0 if all(row["holds"] in (True, None) for row in rows) else 1


def measured(models: list[Path], batch: int | None, everything: bool) -> Iterator[dict]:
    """All rows, each as soon as it is known."""
    import jqnt

    jqnt.keep_freed_memory()  # as onnxruntime's arena does
    for path in models:
        yield from bench(path, batch)
    if everything:
        yield from light()
        yield from linearity()


def bench(path: Path, batch: int | None) -> Iterator[dict]:
    """The rows of one model."""
    import jax
    import jax.numpy as jnp
    from onnxruntime import InferenceSession, SessionOptions

    from jqnt.graph.lower import lower
    from jqnt.graph.onnx_import import import_onnx

    stem = path.stem
    start = time.perf_counter()
    graph, params, _ = import_onnx(path)
    took = time.perf_counter() - start
    yield row(f"{stem}: import", took, "s", IMPORT_S.get(stem, 1.0), "no compilation")

    options = SessionOptions()
    options.log_severity_level = 3
    session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    apply = lower(graph)
    forward = jax.jit(lambda params, inputs: apply(params, {}, inputs))
    batches, bar = INFERENCE.get(stem, ((1,), None))
    on_device = jax.device_put(params)
    for size in (batch,) if batch else batches:
        inputs = make_inputs(graph, size)
        placed = {k: v if v.dtype == np.int64 else jax.device_put(v) for k, v in inputs.items()}
        start = time.perf_counter()
        jax.block_until_ready(forward(on_device, placed))
        first = time.perf_counter() - start
        yield row(f"{stem}: first call, batch {size}", first, "s", 10.0, "with compilation")
        ours, theirs = alternate(
            lambda placed=placed: jax.block_until_ready(forward(on_device, placed)),
            lambda inputs=inputs: session.run(None, inputs),
        )
        detail = f"{ours * 1e3:.2f} ms against {theirs * 1e3:.2f} ms"
        yield row(f"{stem}: inference, batch {size}", ours / theirs, "ratio", bar, detail)
        yield memory(path, size)
    if stem not in TRAINING and stem in INFERENCE:
        return

    inputs = make_inputs(graph, batch or 32)

    def loss(params, inputs):
        outputs = apply(params, {}, inputs)
        return sum(
            jnp.mean(y**2) for y in outputs.values() if jnp.issubdtype(y.dtype, jnp.floating)
        )

    def step(params, inputs):
        gradient = jax.grad(loss)(params, inputs)
        return jax.tree.map(lambda p, g: p - 1e-6 * g, params, gradient)

    def loop(params, inputs):
        return jax.lax.scan(lambda p, _: (step(p, inputs), None), params, length=STEPS)[0]

    jitted, looped = jax.jit(step), jax.jit(loop)
    base, plain = alternate(
        lambda: jax.block_until_ready(forward(on_device, inputs)),
        lambda: jax.block_until_ready(jitted(on_device, inputs)),
    )
    plain_again, scanned = alternate(
        lambda: jax.block_until_ready(jitted(on_device, inputs)),
        lambda: jax.block_until_ready(looped(on_device, inputs)),
        least=BURST,
    )
    scanned /= STEPS
    size = batch or 32
    name = f"{stem}: training step over forward, batch {size}"
    bar = 4.0 if stem in TRAINING else None
    scratch = jitted.lower(on_device, inputs).compile().memory_analysis().temp_size_in_bytes
    yield row(
        f"{stem}: training step, scratch, batch {size}", scratch / 1e6, "MB", None, "in a jit"
    )
    detail = f"{plain * 1e3:.1f} ms over {base * 1e3:.1f} ms"
    yield row(f"{name}, jit", plain / base, "ratio", bar, detail)
    detail = f"{scanned * 1e3:.1f} ms over {base * 1e3:.1f} ms"
    yield row(f"{name}, scan", scanned / base, "ratio", bar, detail)
    detail = f"{scanned * 1e3:.1f} ms over {plain_again * 1e3:.1f} ms"
    name = f"{stem}: step in a scan over step in a jit, batch {size}"
    yield row(name, scanned / plain_again, "ratio", 1.2, detail)


def light() -> Iterator[dict]:
    """Import, and first call at batch 1, of the light CNNs of the onnx package."""
    import jax
    import onnx

    from jqnt.graph.lower import lower
    from jqnt.graph.onnx_import import import_onnx

    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    for path in sorted(folder.glob("*.onnx")):
        start = time.perf_counter()
        graph, params, _ = import_onnx(path)
        took = time.perf_counter() - start
        yield row(f"{path.stem}: import", took, "s", 1.0, f"{len(graph.nodes)} nodes")
        apply = lower(graph)
        forward = jax.jit(lambda params, inputs, apply=apply: apply(params, {}, inputs))
        inputs = make_inputs(graph, 1)
        start = time.perf_counter()
        jax.block_until_ready(forward(params, inputs))
        took = time.perf_counter() - start
        yield row(f"{path.stem}: first call, batch 1", took, "s", 10.0, "with compilation")


def linearity() -> Iterator[dict]:
    """Import, trace and compilation of chains of convolutions: the cost of a node."""
    import jax

    from jqnt.graph.lower import lower
    from jqnt.graph.onnx_import import import_onnx

    costs = {name: {count: [] for count in CHAINS} for name in ("import", "trace", "compilation")}
    for count in CHAINS * 3:
        content = chain(count)
        inputs = {"x": np.zeros((1, 8, 8, 8), np.float32)}
        clock = [time.perf_counter()]
        graph, params, _ = import_onnx(content)
        clock.append(time.perf_counter())
        apply = lower(graph)
        traced = jax.jit(lambda p, x, apply=apply: apply(p, {}, x)).trace(params, inputs).lower()
        clock.append(time.perf_counter())
        traced.compile()
        clock.append(time.perf_counter())
        for name, start, end in zip(costs, clock, clock[1:], strict=False):
            costs[name][count].append((end - start) / count)
    for name, found in costs.items():
        # the least of three: the first warms up, and a garbage collection may fall into any
        short, long = (min(found[count]) for count in CHAINS)
        detail = f"{long * 1e3:.2f} ms a node of {CHAINS[1]}, {short * 1e3:.2f} of {CHAINS[0]}"
        yield row(f"cost of a node, {name}: long over short", long / short, "ratio", LINEAR, detail)


def chain(count: int) -> bytes:
    """Residual blocks of Conv, BatchNormalization, Relu and Add: `count` nodes in all."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, at = [], [], "x"
    for i in range(0, count, 4):
        parameters = {
            f"w{i}": rng.normal(size=(8, 8, 3, 3)) / 9,
            **{f"{k}{i}": rng.uniform(0.5, 1, 8) for k in "sbmv"},
        }
        weights += [numpy_helper.from_array(v.astype(np.float32), k) for k, v in parameters.items()]
        normal = [f"c{i}", *(f"{k}{i}" for k in "sbmv")]
        block = (
            ("Conv", [at, f"w{i}"], f"c{i}", {"pads": [1, 1, 1, 1]}),
            ("BatchNormalization", normal, f"n{i}", {}),
            ("Relu", [f"n{i}"], f"r{i}", {}),
            ("Add", [f"r{i}", at], f"y{i}", {}),
        )
        nodes += [helper.make_node(op, ins, [out], out, **attrs) for op, ins, out, attrs in block]
        at = f"y{i}"
    nodes = nodes[:count]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8, 8, 8])
        for name in ("x", nodes[-1].output[0])
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def row(name: str, figure: float, unit: str, bar: float | None, detail: str) -> dict:
    """One row; all bars here are upper ones."""
    holds = None if bar is None else bool(figure <= bar)
    figure = round(figure, 3)
    return {
        "name": name,
        "figure": figure,
        "unit": unit,
        "bar": bar,
        "holds": holds,
        "detail": detail,
    }


def make_inputs(graph, batch: int) -> dict[str, np.ndarray]:
    """Normal floats, ones for integers; symbols on the first axis are the batch."""
    rng = np.random.default_rng(0)
    inputs = {}
    for name in graph.inputs:
        info = graph.info[name]
        shape = [d if isinstance(d, int) else SYMBOLS.get(str(d), batch) for d in info.shape or ()]
        if name in SCALARS:
            inputs[name] = np.full(shape, SCALARS[name], info.dtype)
        elif info.dtype.kind in "iub":
            inputs[name] = np.ones(shape, info.dtype)
        else:
            inputs[name] = rng.normal(size=shape).astype(info.dtype)
    return inputs


def alternate(first, second, least: int = 6, seconds: float = 3.0) -> tuple[float, float]:
    """Median seconds of two calls, in bursts by turns after a warm-up.

    A library's threads spin for a while after a call and would take a core from the other one:
    each burst begins with a rest and a call that does not count.
    """
    first(), second()
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times[0]) < least or (time.perf_counter() < end and len(times[0]) < 200):
        for call, record in zip((first, second), times, strict=True):
            time.sleep(REST_S)
            call()
            for _ in range(BURST):
                start = time.perf_counter()
                call()
                record.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def memory(path: Path, batch: int) -> dict:
    """Growth of the resident set in a process of its own, against onnxruntime's."""
    found = {}
    for which in ("jqnt", "onnxruntime"):
        command = [sys.executable, __file__, str(path), "--batch", str(batch), "--memory-of", which]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[which] = float(done.stdout.strip().splitlines()[-1])
    bar = max(3 * found["onnxruntime"], 400)
    detail = f"onnxruntime {found['onnxruntime']:.0f} MB"
    return row(f"{path.stem}: memory, batch {batch}", found["jqnt"], "MB", bar, detail)


def growth(which: str, path: Path, batch: int) -> float:
    """MB by which the peak grows from after the imports to after a few calls."""
    import jax
    import onnxruntime

    from jqnt.graph.lower import lower
    from jqnt.graph.onnx_import import import_onnx
    from jqnt.memory import keep_freed_memory

    keep_freed_memory()
    jax.block_until_ready(jax.jit(lambda x: x + 1)(np.ones(3, np.float32)))
    before = peak_kb()
    graph, params, _ = import_onnx(path)
    inputs = make_inputs(graph, batch)
    if which == "jqnt":
        apply = lower(graph)
        forward = jax.jit(lambda params, inputs: apply(params, {}, inputs))
        on_device = jax.device_put(params)
        for _ in range(3):
            jax.block_until_ready(forward(on_device, inputs))
    else:
        del params
        before = peak_kb()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        for _ in range(3):
            session.run(None, inputs)
    return (peak_kb() - before) / 1024


def peak_kb() -> int:
    """The peak of the resident set; getrusage would count what the parent process held, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def show(found: dict) -> None:
    bar = "" if found["bar"] is None else f"<= {found['bar']:g}"
    verdict = {True: "ok", False: "MISSED", None: ""}[found["holds"]]
    figure = f"{found['figure']:9.3f} {found['unit']:6}"
    print(f"{found['name']:72}  {figure} {bar:8} {verdict:7} {found['detail']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
