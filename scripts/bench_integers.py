#!/usr/bin/env python3
"""Integer emulation against onnxruntime's integer kernels and our own float forward, in one run.

bench_integers.py [MODEL ...] [--batch N] [--calls N] [--json] [--data DIR]

A model is calibrated on random inputs (speed and equality of codes do not depend on the data),
emulated, written as a QOperator graph and run in onnxruntime. Ratios are medians of wall time of
calls that alternate between the three; onnxruntime runs with all graph optimizations.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MODELS = ("cifar10_resnet20", "digits_mbv2_folded", "imagenet_mobilenetv2_10")
FLOAT_BAR, ORT_BAR = 1.0, 4.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    models = args.models or [args.data / "models" / f"{stem}.onnx" for stem in MODELS]
    if missing := [str(path) for path in models if not path.is_file()]:
        print(f"no such file: {', '.join(missing)}", file=sys.stderr)
        return 2
    rows = [row for path in models for row in bench(path, args.batch, args.calls)]
    rows += requantization(10**7)
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        show(rows)
    return 0 if all(row["holds"] in (True, None) for row in rows) else 1


def bench(path: Path, batch: int, calls: int) -> list[dict[str, Any]]:
    """The rows of one model."""
    import jax
    import jax.numpy as jnp
    import onnxruntime as ort

    import jqnt
    from jqnt.interop.onnx_qop import to_qoperator
    from jqnt.transforms.cleanup import cleanup
    from jqnt.transforms.fold_bn import fold_bn

    graph, params, _ = jqnt.import_onnx(path)
    graph, params = cleanup(*fold_bn(graph, params))
    shape = [d if isinstance(d, int) else batch for d in graph.info[graph.inputs[0]].shape]
    rng = np.random.default_rng(0)
    inputs = {graph.inputs[0]: rng.normal(size=shape).astype(np.float32)}
    apply, plan = jqnt.lower(graph), jqnt.plan(graph)
    theta = jqnt.calibrate(apply, params, plan, [inputs])
    frozen, encodings = jqnt.freeze(graph, params, jqnt.bind(theta, plan))
    run = jqnt.integer.lower(graph, frozen, encodings)
    forward = jax.jit(lambda p, x: apply(p, {}, x))
    on_device = jax.tree.map(jnp.asarray, params)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # Without VNNI, onnxruntime saturates pairs of products at 16 bits unless it is told not to.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(
        to_qoperator(graph, frozen, encodings).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    outputs = list(graph.outputs)
    theirs = session.run(outputs, inputs)
    ours = run(inputs)
    wrong = sum(
        int((np.asarray(ours[name]) != value).sum())
        for name, value in zip(outputs, theirs, strict=True)
    )
    integer, floating, reference = medians(
        [
            lambda: jax.block_until_ready(run(inputs)),
            lambda: jax.block_until_ready(forward(on_device, inputs)),
            lambda: session.run(outputs, inputs),
        ],
        calls,
    )
    times = f"{integer:.2f} ms, float {floating:.2f}, onnxruntime int8 {reference:.2f}"
    label = f"{path.stem}, batch {shape[0]}"
    return [
        row(f"{label}: outputs unlike onnxruntime's", wrong, "values", 0, f"of {total(theirs)}"),
        row(f"{label}: emulation / own float", integer / floating, "ratio", FLOAT_BAR, times),
        row(f"{label}: emulation / onnxruntime", integer / reference, "ratio", ORT_BAR, times),
    ]


def requantization(count: int) -> list[dict[str, Any]]:
    """Each rounding of an int32 accumulator against int64 (float32 where the backend is float)."""
    import jax
    import jax.numpy as jnp

    from jqnt.integer import ncnn
    from jqnt.integer.fixed_point import quantized_multiplier
    from jqnt.integer.mnn import CONV, DEPTHWISE
    from jqnt.integer.requantize import FLOAT
    from jqnt.integer.requantize_fixed import DOUBLE, DYADIC, SINGLE
    from jqnt.integer.rule import Out, Zeros

    rng = np.random.default_rng(0)
    edges = np.int64([0, 1, -1, 2**24, -(2**24), 2**24 + 1, 2**29, -(2**29)])
    near = rng.integers(-(2**12), 2**12, count // 2)
    acc = np.concatenate([edges, near, rng.integers(-(2**29), 2**29, count - count // 2 - 8)])
    sx, sw, sy = np.float32(0.5), np.float32(2.0**-9 * 1.37), np.float32(0.25)
    ties = (np.float32(0.5), np.float32(2.0**-4), np.float32(1))
    out = Out(np.int32(-3), np.int32(-128), np.int32(127))
    bias, real = np.int64([77]), np.float32([77 * sx * sw])

    def double(x: np.ndarray, m: np.ndarray, shift: np.ndarray) -> np.ndarray:
        high = ((x << max(int(shift), 0)) * int(m) + 2**30) >> 31
        right = max(-int(shift), 0)
        return np.sign(high) * ((np.abs(high) + ((1 << right) >> 1)) >> right)

    def single(x: np.ndarray, m: np.ndarray, shift: np.ndarray) -> np.ndarray:
        right = 31 - int(shift)
        return (x * int(m) + (1 << (right - 1))) >> right

    def even(x: np.ndarray, m: np.ndarray, shift: np.ndarray) -> np.ndarray:
        right, product = 31 - int(shift), x * int(m)
        up = (product + (1 << (right - 1))) >> right
        tie = (product & ((1 << right) - 1)) == 1 << (right - 1)
        return up - (tie & (up & 1 == 1))

    def away(value: np.ndarray) -> np.ndarray:
        return np.trunc(value + np.copysign(np.float32(0.5), value)).astype(np.float64)

    found = []
    for scales in ((sx, sw, sy), ties):
        m, shift = quantized_multiplier(np.float64(scales[0]) * scales[1] / np.float64(scales[2]))
        f, (a, w, y), one = acc.astype(np.float32), scales, np.float32(1)
        moved = acc + np.trunc(real / (a * w)) + np.trunc(np.float32(-3) / (w * (a / y)))
        ratio = one / ((one / a) * (one / w))
        # a product of two float32 numbers is exact in float64
        fused = (np.float64(f) * np.float64(ratio) + np.float64(real)).astype(np.float32)
        whole = (acc + bias[0]).astype(np.float32)
        expected = {
            "half even, float32": (FLOAT, np.rint(whole * (a * w / y))),
            "two roundings": (DOUBLE, double(acc + bias[0], m, shift)),
            "one rounding": (SINGLE, single(acc + bias[0], m, shift)),
            "dyadic, half even": (DYADIC, even(acc + bias[0], m, shift)),
            "MNN": (CONV, away(f * w * (a / y) + (real / y + np.float32(-3))) + 3),
            "MNN, depthwise": (DEPTHWISE, away(moved.astype(np.float32) * (w * (a / y))) + 3),
            "ncnn": (ncnn.CONV, away(fused * (one / y))),
        }
        for name, (rule, value) in expected.items():
            numbers = (a, np.full(1, w), y, bias, real)
            zeros = (Zeros(-128, -3, np.zeros(1, np.int64)),) if "MNN" in name else ()
            table = rule.prepare(*numbers, *zeros)
            run = jax.jit(lambda x, t, rule=rule: rule.apply(x, t, out))
            ours = np.asarray(run(jnp.asarray(acc.astype(np.int32)), table))
            wrong = int((ours != np.clip(value - 3, -128, 127)).sum())
            kind = "ties" if scales is ties else "random and edges"
            found.append(row(f"requantization, {name}, {kind}", wrong, "values", 0, f"of {count}"))
    return found


def medians(functions: list[Callable[[], Any]], calls: int) -> list[float]:
    """Milliseconds of each, called in turn after two warm-up rounds."""
    taken: list[list[float]] = [[] for _ in functions]
    for i in range(calls + 2):
        for function, times in zip(functions, taken, strict=True):
            begin = time.perf_counter()
            function()
            if i > 1:
                times.append((time.perf_counter() - begin) * 1e3)
    return [statistics.median(times) for times in taken]


def total(arrays: list[np.ndarray]) -> int:
    return sum(array.size for array in arrays)


def row(name: str, figure: float, unit: str, bar: float, detail: str) -> dict[str, Any]:
    """One figure; it holds where it is at most its bar."""
    figure = round(float(figure), 3)
    return {
        "name": name,
        "figure": figure,
        "unit": unit,
        "bar": bar,
        "holds": figure <= bar,
        "detail": detail,
    }


def show(rows: list[dict[str, Any]]) -> None:
    for entry in rows:
        verdict = "ok  " if entry["holds"] else "MISS"
        print(
            f"{verdict} {entry['figure']:8.3f} <= {entry['bar']:<5} {entry['name']}"
            f" ({entry['detail']})"
        )


if __name__ == "__main__":
    sys.exit(main())
