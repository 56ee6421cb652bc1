#!/usr/bin/env python3
"""Do imported models compute what onnxruntime computes, and are their gradients right?

bench_parity.py [MODEL ...] [--only parity gradients stsb speech] [--json] [--data DIR]

Without files: every model under DIR/models, the parity of the light CNNs that onnx ships, and the
two whole tasks: the rank correlation of sentence similarities, and one minute of speech with its
state. Gradients are compared with central differences in float64 on a sample of weights; a
quantized graph has straight-through gradients, of which only finiteness is asked.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from material import DATA

PIECES = ("parity", "gradients", "stsb", "speech")
SIZES = {"seq": 16, "sequence": 576}
SCALARS = {"sr": 16000}
WEIGHTS = 6
STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
SPEARMAN = 82.03


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--only", nargs="*", choices=PIECES, default=PIECES)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    models = args.models or sorted((args.data / "models").glob("*.onnx"))
    if not models or (missing := [str(path) for path in models if not path.is_file()]):
        print(f"no such file: {', '.join(missing) if models else args.data}", file=sys.stderr)
        return 2
    rows = []
    for found in measured(models, args.data, args.only, whole=not args.models):
        rows.append(found)
        if not args.json:
            show(found)
    if args.json:
        print(json.dumps(rows, indent=1))
    return 0 if all(row["holds"] in (True, None) for row in rows) else 1


def measured(models: list[Path], data: Path, only: list[str], whole: bool) -> Iterator[dict]:
    """All rows, each as soon as it is known."""
    for path in models:
        if "parity" in only:
            yield parity(path)
        if "gradients" in only:
            yield gradients(path)
    if whole and "parity" in only:
        yield from map(parity, light())
    if whole and "stsb" in only:
        yield stsb(data)
    if whole and "speech" in only:
        yield speech(data)


def light() -> list[Path]:
    """The CNNs of the onnx package, whose weights are made by nodes of the graph."""
    import onnx

    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    return sorted(folder.glob("*.onnx"))


def row(name: str, figure: float, unit: str, bar: str | None, holds: bool | None, detail: str):
    figure = float(f"{figure:.4g}")
    keys = ("name", "figure", "unit", "bar", "holds", "detail")
    return dict(zip(keys, (name, figure, unit, bar, holds, detail), strict=True))


def parity(path: Path) -> dict:
    """The largest difference from onnxruntime over the largest output; codes where it is
    quantized."""
    from jqnt.graph.onnx_import import import_onnx
    from jqnt.graph.session import session
    from jqnt.thaw import thaw

    graph, params, encodings = import_onnx(path)
    inputs = made_inputs(graph, 3)
    found = session(graph, params)(params, thaw(encodings), inputs)
    wanted = dict(zip(graph.outputs, runtime(path).run(list(graph.outputs), inputs), strict=True))
    worst, same = 0.0, 1.0
    for name, theirs in wanted.items():
        ours = np.asarray(found[name])
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            detail = f"{name}: {ours.dtype}{list(ours.shape)}, {theirs.dtype}{list(theirs.shape)}"
            return row(f"{path.stem}: parity", np.inf, "", "<= 0.0001", False, detail)
        gap = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        worst = max(worst, float(gap.max() / max(np.abs(theirs).max(), 1e-30)))
        same = min(same, float((gap == 0).mean()))
    if encodings:
        detail = f"{len(encodings)} encodings; the largest difference is {worst:.1%} of the largest"
        return row(f"{path.stem}: equal outputs", same, "share", ">= 0.99", same >= 0.99, detail)
    detail = f"{len(wanted)} outputs, over the largest value"
    return row(f"{path.stem}: parity", worst, "", "<= 0.0001", worst <= 1e-4, detail)


def gradients(path: Path) -> dict:
    """The worst relative error of a sample of partial derivatives; all of them finite."""
    import jax
    import jax.numpy as jnp

    from jqnt.graph.concrete import shape_inputs
    from jqnt.graph.lower import lower
    from jqnt.graph.onnx_import import import_onnx
    from jqnt.thaw import thaw

    graph, params, encodings = import_onnx(path)
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        params = {k: doubled(np.asarray(v)) for k, v in params.items()}
        graph = in_double(graph)
        qparams = thaw(encodings)
        inputs = {k: doubled(v) for k, v in made_inputs(graph, 1).items()}
        fixed = {k: v for k, v in inputs.items() if k in shape_inputs(graph)}
        moving = {k: v for k, v in inputs.items() if k not in fixed}
        apply = lower(graph)

        def loss(params, moving):
            outputs = apply(params, qparams, {**moving, **fixed}).values()
            floats = [y for y in outputs if jnp.issubdtype(y.dtype, jnp.floating)]
            return sum(jnp.sum(jnp.sin(y)) for y in floats or outputs)

        name, bar = f"{path.stem}: gradients", "<= 0.0001"
        gradient = jax.jit(jax.grad(loss))(params, moving)
        gradient = {k: np.asarray(v) for k, v in gradient.items()}
        if not all(np.isfinite(g).all() for g in gradient.values()):
            return row(name, np.inf, "", bar, False, "not finite")
        count = f"{len(gradient)} weights, all finite"
        if encodings:
            return row(name, 0.0, "", None, None, f"{count}; straight-through")
        forward = jax.jit(loss)
        worst = 0.0
        for weight in list(params)[:: max(1, len(params) // WEIGHTS)]:
            index = telling(gradient[weight], rng)

            def moved(step, weight=weight, index=index):
                value = params[weight].copy()
                value[index] += step
                return float(forward({**params, weight: value}, moving))

            slope, found = difference(moved), float(gradient[weight][index])
            worst = max(worst, abs(found - slope) / max(abs(slope), 1e-6))
    return row(name, worst, "", bar, worst <= 1e-4, f"{count}; against central differences")


def telling(gradient: np.ndarray, rng) -> tuple[int, ...]:
    """A random entry, among those that matter: at least a hundredth of the largest."""
    size = np.abs(gradient)
    entries = np.argwhere(size >= 1e-2 * size.max())
    return tuple(int(i) for i in entries[rng.integers(len(entries))])


def difference(f) -> float:
    """f'(0) by central differences: of all steps the two neighbours that agree best.

    Long steps cross the kinks of Relu and MaxPool, short ones drown in the rounding of f; the
    longer one of the two has the smaller rounding.
    """
    slopes = [(f(step) - f(-step)) / (2 * step) for step in STEPS]
    best = min(range(len(STEPS) - 1), key=lambda i: abs(slopes[i] - slopes[i + 1]))
    return slopes[best]


def stsb(data: Path) -> dict:
    """Spearman's correlation, in percent, of the dot products of the pairs' embeddings."""
    from scipy.stats import spearmanr

    import jqnt

    network = jqnt.load(data / "models" / "minilm_l6_stsb.onnx")
    with np.load(data / "stsb_tokens.npz") as file:
        score = file["eval_score"]
        sides = []
        for side in "ab":
            ids, mask = file[f"eval_ids_{side}"], file[f"eval_mask_{side}"]
            parts = [
                np.asarray(network(ids[i : i + 64].astype(np.int64),
                                   mask[i : i + 64].astype(np.int64),
                                   np.zeros_like(ids[i : i + 64], dtype=np.int64))[1])
                for i in range(0, len(ids), 64)
            ]  # fmt: skip
            sides.append(np.concatenate(parts))
    figure = 100 * float(spearmanr((sides[0] * sides[1]).sum(1), score).statistic)
    holds = abs(figure - SPEARMAN) <= 0.02
    detail = f"{len(score)} pairs"
    return row("minilm_l6_stsb: Spearman", figure, "%", f"{SPEARMAN} +- 0.02", holds, detail)


def speech(data: Path) -> dict:
    """A minute of speech step by step, each library with its own state."""
    from jqnt.graph.onnx_import import import_onnx
    from jqnt.graph.session import session

    path = data / "models" / "silero_vad_16k.onnx"
    graph, params, _ = import_onnx(path)
    ours_run, theirs_run = session(graph, params), runtime(path)
    audio = np.load(data / "speech_16k.npz")["audio"].astype(np.float32) / 32768
    ours = theirs = np.zeros((2, 1, 128), np.float32)
    context, rate = np.zeros((1, 64), np.float32), np.asarray(16000)
    worst, spoken, steps = 0.0, 0, range(0, len(audio) - 511, 512)
    for start in steps:
        frame = np.concatenate([context, audio[None, start : start + 512]], axis=1)
        context = frame[:, -64:]
        wanted, theirs = theirs_run.run(None, {"input": frame, "state": theirs, "sr": rate})
        found = ours_run(params, {}, {"input": frame, "state": ours, "sr": rate})
        ours = found["stateN"]
        worst = max(worst, float(np.abs(found["output"] - wanted).max()))
        spoken += float(found["output"][0, 0]) > 0.5
    detail = f"{len(steps)} steps, speech in {spoken / len(steps):.1%}"
    return row("silero_vad_16k: a minute", worst, "", "<= 0.0001", worst <= 1e-4, detail)


def made_inputs(graph, batch: int) -> dict[str, np.ndarray]:
    """Normal floats, all codes for 8-bit integers, zeros and ones for wider ones."""
    rng = np.random.default_rng(0)
    inputs = {}
    for name in graph.inputs:
        info = graph.info[name]
        shape = [d if isinstance(d, int) else SIZES.get(str(d), batch) for d in info.shape or ()]
        if name in SCALARS:
            value = np.full(shape, SCALARS[name])
        elif info.dtype.kind in "iu" and info.dtype.itemsize == 1:
            limits = np.iinfo(info.dtype)
            value = rng.integers(limits.min, limits.max, shape, endpoint=True)
        elif info.dtype.kind in "iub":
            value = np.maximum(rng.integers(0, 2, shape), np.arange(shape[-1] if shape else 1) < 2)
        else:
            value = rng.normal(size=shape)
        inputs[name] = np.asarray(value).astype(info.dtype).reshape(shape)
    return inputs


def in_double(graph):
    """The graph computing in float64: its constants, attributes and casts."""
    from onnx import TensorProto

    nodes = []
    for node in graph.nodes:
        attrs = {k: doubled(v) for k, v in node.attrs.items()}
        if node.op == "Cast" and attrs["to"] == TensorProto.FLOAT:
            attrs["to"] = TensorProto.DOUBLE
        nodes.append(node.replace(attrs=attrs))
    constants = {k: doubled(v) for k, v in graph.constants.items()}
    return graph.replace(nodes=tuple(nodes), constants=constants)


def doubled(value):
    """float32 arrays as float64, bodies computing in it, everything else as it is."""
    from jqnt.graph.ir import Graph

    if isinstance(value, Graph):
        return in_double(value)
    found = isinstance(value, np.ndarray) and value.dtype == np.float32
    return value.astype(np.float64) if found else value


def runtime(path: Path):
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 3
    return InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def show(found: dict) -> None:
    verdict = {True: "ok", False: "MISSED", None: ""}[found["holds"]]
    figure = f"{found['figure']:10.4g} {found['unit']:6}"
    bar = found["bar"] or ""
    print(f"{found['name']:48}  {figure} {bar:14} {verdict:7} {found['detail']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
