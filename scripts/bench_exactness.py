#!/usr/bin/env python3
"""Integer emulation against backends' own kernels: one row an operator, random shapes and scales.

bench_exactness.py [--only BACKEND] [--cases N] [--seed N] [--json]

BACKEND is one of onnxruntime, litert, xnnpack, mnn, ncnn; all but onnxruntime run in the Python
of .venv-oracles, which scripts/oracles makes. A row counts the values of N models of one operator
that differ; the bar is 0.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jqnt.encodings import Encodings
from jqnt.formats import Integer
from jqnt.integer import lower
from jqnt.interop.ncnn import to_ncnn
from jqnt.interop.onnx_qop import to_qoperator
from tests.backends import litert_pair, mnn_outputs, ncnn_arithmetic, ncnn_outputs
from tests.built import node
from tests.quantized_case import S8, U8, WEIGHT, case, encoded, ort_session

STRICT = Integer(8, signed=True, strict=True)
ROOT = Path(__file__).resolve().parents[1]
ORACLE = ROOT / ".venv-oracles" / "bin" / "python"


class Model(NamedTuple):
    """Nodes that make "y"; the tensors beside the inputs that have grids; `channels`: a weight
    scale for each output; `shared`: "y" has the grid of "x" where the backend asks it."""

    nodes: list[Any]
    inputs: dict[str, np.ndarray]
    params: Mapping[str, np.ndarray] = MappingProxyType({})
    tensors: tuple[str, ...] = ("y",)
    channels: bool = True
    shared: bool = False


Draw = Callable[[np.random.Generator], Model]
Case = Callable[[Model, int, Path], tuple[np.ndarray, np.ndarray]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Integer emulation against backends' kernels.")
    parser.add_argument("--only", choices=tuple(TABLES), help="one backend")
    parser.add_argument("--cases", type=int, default=20, help="models for each row (20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    chosen = [args.only] if args.only else list(TABLES)
    if chosen != ["onnxruntime"]:
        made = subprocess.run([ROOT / "scripts" / "oracles"], capture_output=True, text=True)
        if made.returncode:
            print(f"error: scripts/oracles failed: {made.stderr[-300:]}", file=sys.stderr)
            return 2
    found = []
    for row in rows(chosen, args.cases, args.seed):
        found.append(row)
        if not args.json:
            verdict = "ok  " if row["holds"] else "MISS"
            line = f"{verdict} {row['figure']:6d} <= 0  {row['name']} ({row['detail']})"
            print(line, flush=True)
    if args.json:
        print(json.dumps(found, indent=1))
    return 0 if all(row["holds"] for row in found) else 1


def rows(backends: Sequence[str], cases: int, seed: int) -> Iterator[dict[str, Any]]:
    """One row for each operator of each backend."""
    for backend in backends:
        run, operators = TABLES[backend]
        for name in operators:
            wrong = total = 0
            for i in range(cases):
                rng = np.random.default_rng([seed, i])
                with tempfile.TemporaryDirectory() as folder:
                    ours, theirs = run(OPERATORS[name](rng), i, Path(folder))
                assert ours.shape == theirs.shape, (backend, name, i)
                wrong, total = wrong + int((ours != theirs).sum()), total + theirs.size
            yield {
                "name": f"{backend}: {name}",
                "figure": wrong,
                "unit": "values",
                "bar": 0,
                "holds": wrong == 0,
                "detail": f"of {total} in {cases} shapes",
            }


def on_onnxruntime(model: Model, i: int, _: Path) -> tuple[np.ndarray, np.ndarray]:
    """Grids of uint8 and int8 in turn; int8 activations with each other saturate as weights do
    where `WEIGHT` is narrow."""
    two = model.nodes[0].op_type == "MatMul" and not model.params
    signed = i % 2 and (WEIGHT.bits == 8 or not two)
    graph, params = case(model.nodes, model.inputs, ["y"], model.params)
    encodings = encoded(
        graph, params, model.inputs, model.tensors, activation=S8 if signed else U8,
        per_channel=i % 3 > 0, seed=i,
    )  # fmt: skip
    session = ort_session(to_qoperator(graph, params, encodings))
    (theirs,) = session.run(["y"], model.inputs)
    return np.asarray(lower(graph, params, encodings)(model.inputs)["y"]), theirs


def on_litert(kernels: str) -> Case:
    """LiteRT's reference or default kernels, in int8."""

    def run(model: Model, i: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        graph, params = case(model.nodes, model.inputs, ["y"], model.params)
        grid = S8 if i % 2 else U8
        encodings = encoded(graph, params, model.inputs, model.tensors, activation=grid, seed=i)
        if model.shared:
            encodings = Encodings({**encodings.tensors, "y": encodings["x"]})
        return litert_pair(ORACLE, folder, (graph, params, encodings), model.inputs["x"], kernels)

    return run


def on_mnn(model: Model, i: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """MNN's int8 layers; what it gives are reals of the output's grid."""
    graph, params, encodings = _without_bias_grid(model, S8, S8, i)
    theirs = mnn_outputs(ORACLE, folder, (graph, params, encodings), model.inputs["x"])
    ours = np.asarray(lower(graph, params, encodings, "mnn")(model.inputs)["y"])
    scale = encodings["y"].scale
    return np.rint(ours / scale), np.rint(theirs / scale)


def on_ncnn(model: Model, i: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """ncnn's int8 layers: in turn with codes and with floats behind them."""
    tensors = model.tensors if i % 2 else tuple(t for t in model.tensors if t != "y")
    model = model._replace(tensors=tensors)
    graph, params, encodings = _without_bias_grid(model, STRICT, STRICT, i)
    centred = {k: replace(e, zero_point=np.zeros_like(e.zero_point)) for k, e in encodings.items()}
    encodings = Encodings(centred)
    layers = to_ncnn(graph, params, encodings)
    theirs = ncnn_outputs(ORACLE, folder, layers, model.inputs["x"], "x", "y")
    return np.asarray(lower(graph, params, encodings, ncnn_arithmetic())(model.inputs)["y"]), theirs


def _without_bias_grid(model: Model, activation: Integer, weight: Integer, seed: int) -> Any:
    graph, params = case(model.nodes, model.inputs, ["y"], model.params)
    found = encoded(
        graph, params, model.inputs, model.tensors, activation=activation, weight=weight,
        per_channel=model.channels, seed=seed,
    )  # fmt: skip
    return graph, params, Encodings({k: e for k, e in found.items() if k != "b"})


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32) * np.float32(10 ** rng.uniform(-2, 2))


def convolution(rank: int = 2, kind: str = "full") -> Draw:
    """Strides, pads, a bias and a Relu at random."""

    def draw(rng: np.random.Generator) -> Model:
        k, stride = int(rng.integers(1, 4)), int(rng.integers(1, 3))
        groups, inner, outer = 1, int(rng.integers(1, 40 if rank < 3 else 9)), rng.integers(1, 24)
        if kind == "grouped":
            groups, inner, outer = (int(rng.integers(2, n)) for n in (5, 7, 7))
        if kind == "depthwise":
            groups, inner, outer, k = int(rng.integers(2, 24)), 1, 1, int(rng.choice([3, 3, 5]))
        dilation = 2 if kind == "dilated" else 1
        k = max(k, 2) if kind == "dilated" else k
        size = rng.integers(2 * k + 1, 2 * k + 12 // rank, rank)
        attrs = {
            "strides": [stride] * rank,
            "pads": [int(rng.integers(0, 2)) * (k // 2)] * 2 * rank,
            "dilations": [dilation] * rank,
            "group": groups,
        }
        outputs = groups * int(outer)
        params = {"w": _normal(rng, outputs, inner, *[k] * rank)}
        inputs = {"x": _normal(rng, int(rng.integers(1, 4)), groups * inner, *size)}
        spread = np.std(inputs["x"]) * np.std(params["w"]) * np.sqrt(inner * k**rank)
        if bias := rng.random() < 0.7:
            params["b"] = (rng.normal(size=outputs) * spread).astype(np.float32)
        relu = rng.random() < 0.5
        nodes = [node("Conv", "x w b" if bias else "x w", "c" if relu else "y", **attrs)]
        nodes += [node("Relu", "c", "y")] if relu else []
        return Model(nodes, inputs, params, channels=kind != "grouped")

    return draw


def gemm(rng: np.random.Generator) -> Model:
    rows, k, n = (int(v) for v in rng.integers(1, 70, 3))
    params = {"w": _normal(rng, n, k)}
    inputs = {"x": _normal(rng, rows, k)}
    spread = np.std(inputs["x"]) * np.std(params["w"]) * np.sqrt(k)
    params["b"] = (rng.normal(size=n) * spread).astype(np.float32)
    return Model([node("Gemm", "x w b", "y", transB=1)], inputs, params)


def matmul_weight(rng: np.random.Generator) -> Model:
    *rows, k, n = (int(v) for v in rng.integers(1, 40, 4))
    return Model([node("MatMul", "x w", "y")], {"x": _normal(rng, *rows, k)},
                 {"w": _normal(rng, k, n)})  # fmt: skip


def matmul_two(rng: np.random.Generator) -> Model:
    batch, rows, k, n = (int(v) for v in rng.integers(1, 30, 4))
    inputs = {"a": _normal(rng, batch, rows, k), "b": _normal(rng, batch, k, n)}
    return Model([node("MatMul", "a b", "y")], inputs)


def joined(op: str) -> Draw:
    """Two tensors of one shape, or one of them a number for each channel."""

    def draw(rng: np.random.Generator) -> Model:
        shape = tuple(int(v) for v in rng.integers(1, 14, 4))
        other = shape if rng.random() < 0.6 else (1, shape[1], 1, 1)
        return Model([node(op, "a b", "y")], {"a": _normal(rng, *shape), "b": _normal(rng, *other)})

    return draw


def branched(op: str) -> Draw:
    """A tensor and a pointwise convolution of it: one input, two operands."""

    def draw(rng: np.random.Generator) -> Model:
        batch, n, *size = (int(v) for v in rng.integers(2, 14, 4))
        nodes = [node("Conv", "x w", "c"), node(op, "x c", "y")]
        params = {"w": _normal(rng, n, n, 1, 1)}
        return Model(nodes, {"x": _normal(rng, batch, n, *size)}, params, ("c", "y"))

    return draw


def concat(rng: np.random.Generator) -> Model:
    names, shape = "abcd"[: rng.integers(2, 5)], rng.integers(1, 9, 4)
    inputs = {k: _normal(rng, shape[0], int(rng.integers(1, 9)), *shape[2:]) for k in names}
    return Model([node("Concat", " ".join(names), "y", axis=1)], inputs)


def unary(op: str, **attrs: Any) -> Draw:
    def draw(rng: np.random.Generator) -> Model:
        shape = tuple(int(v) for v in rng.integers(1, 14, 4))
        return Model([node(op, "x", "y", **attrs)], {"x": _normal(rng, *shape)})

    return draw


def average_pool(rng: np.random.Generator) -> Model:
    k = [int(v) for v in rng.integers(1, 4, 2)]
    pads = [int(rng.integers(0, 2)) * (n // 2) for n in k] * 2
    attrs = {"kernel_shape": k, "pads": pads, "strides": [int(v) for v in rng.integers(1, 3, 2)],
             "count_include_pad": int(rng.integers(0, 2))}  # fmt: skip
    shape = [int(v) for v in (*rng.integers(1, 8, 2), *rng.integers(4, 12, 2))]
    return Model([node("AveragePool", "x", "y", **attrs)], {"x": _normal(rng, *shape)})


def mean(rng: np.random.Generator) -> Model:
    shape = [int(v) for v in rng.integers(1, 14, 4)]
    axes = rng.permutation(4)[: rng.integers(1, 5)].tolist()
    return Model([node("ReduceMean", "x", "y", axes=axes)], {"x": _normal(rng, *shape)})


def resize(rng: np.random.Generator) -> Model:
    shape, after = (tuple(int(v) for v in rng.integers(2, 20, 4)) for _ in range(2))
    mode = ("half_pixel", "align_corners", "asymmetric")[rng.integers(3)]
    attrs = {"mode": "linear", "coordinate_transformation_mode": mode}
    sizes = {"sizes": np.int64([*shape[:2], *after[2:]])}
    made = [node("Resize", "x - - sizes", "y", **attrs)]
    return Model(made, {"x": _normal(rng, *shape)}, sizes, shared=True)


def max_pool(rng: np.random.Generator) -> Model:
    model = average_pool(rng)
    attrs = {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 1, 0, 1]}
    return model._replace(nodes=[node("MaxPool", "x", "y", **attrs)])


def softmax(rng: np.random.Generator) -> Model:
    rows, n = int(rng.integers(1, 40)), int(rng.integers(2, 500))
    x = (rng.normal(size=(rows, n)) * rng.uniform(0.5, 5)).astype(np.float32)
    return Model([node("Softmax", "x", "y", axis=-1)], {"x": x})


OPERATORS: dict[str, Draw] = {
    "Conv 1-D": convolution(1),
    "Conv 2-D": convolution(2),
    "Conv 3-D": convolution(3),
    "Conv grouped": convolution(2, "grouped"),
    "Conv depthwise": convolution(2, "depthwise"),
    "Conv dilated": convolution(2, "dilated"),
    "Gemm": gemm,
    "MatMul, weight": matmul_weight,
    "MatMul, activations": matmul_two,
    "Add": joined("Add"),
    "Mul": joined("Mul"),
    "Add, one input": branched("Add"),
    "Mul, one input": branched("Mul"),
    "Concat": concat,
    "AveragePool": average_pool,
    "GlobalAveragePool": unary("GlobalAveragePool"),
    "ReduceMean": mean,
    "Resize, linear": resize,
    "MaxPool": max_pool,
    "Sigmoid": unary("Sigmoid"),
    "LeakyRelu": unary("LeakyRelu", alpha=0.1),
    "Softmax": softmax,
}
_LITERT = ("Conv 2-D", "Conv depthwise", "Gemm", "Add, one input", "Mul, one input",
           "GlobalAveragePool", "ReduceMean", "Resize, linear")  # fmt: skip
TABLES: dict[str, tuple[Case, tuple[str, ...]]] = {
    "onnxruntime": (on_onnxruntime, tuple(n for n in OPERATORS if "one input" not in n)),
    "litert": (on_litert("ref"), _LITERT),
    "xnnpack": (on_litert("auto"), _LITERT[:-1]),
    "mnn": (on_mnn, ("Conv 2-D", "Conv depthwise", "Gemm", "MatMul, weight")),
    "ncnn": (on_ncnn, ("Conv 2-D", "Conv grouped", "Conv depthwise", "Conv dilated", "Gemm")),
}

if __name__ == "__main__":
    sys.exit(main())
