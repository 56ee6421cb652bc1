#!/usr/bin/env python3
"""Quantization-aware training and range learning on real models: accuracy, laws, cost.

bench_qat.py [--only ROW] [--keys N] [--json] [--data DIR]

ROW is one of resnet8, mbv2, aimet, resnet20, mobilenetv1, tqt, oscillation, cost_resnet20,
cost_mobilenetv2, cost_minilm. Everything is measured in this run; a row without a bar only
informs. One recipe for all: KL to the float outputs, LSQ ranges, Adam in units of each tensor
under a cosine schedule; only the number of steps differs. Photos are also mirrored and shifted.
Standard errors are over the keys, paired where two methods are compared.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from material import DATA, Images, cifar10, digits, imagenet, model_path

import jqnt
from jqnt import ranges
from jqnt.learn.divergence import kl, with_targets
from jqnt.learn.fit import advance, fit, start
from jqnt.learn.kinds import of_kind
from jqnt.learn.method import Method, task
from jqnt.learn.oscillation import dampening, still, track
from jqnt.learn.qat import relative_adam
from jqnt.learn.reconstruct import reconstruct
from jqnt.learn.rounding import learn_rounding
from jqnt.learn.source import Draw, Whole
from jqnt.observers import exact_mse, sqnr
from jqnt.parametrize import parametrize

Row = dict[str, Any]
RATES = (3e-3, 1e-2)
"""Of the weights and of the ranges, per step and in units of the tensor."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=tuple(TABLES), help="one table")
    parser.add_argument("--keys", type=int, default=3, help="repetitions")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    if not (args.data / "models").is_dir():
        print(f"error: no folder {args.data / 'models'}; give --data DIR", file=sys.stderr)
        return 2
    jqnt.keep_freed_memory()
    rows: list[Row] = []
    for name in [args.only] if args.only else TABLES:
        for found in TABLES[name](args.data, args.keys):
            rows.append(found)
            if not args.json:
                show(found)
    if args.json:
        print(json.dumps(rows, indent=1))
    return 0 if all(r["holds"] is not False for r in rows) else 1


def row(name: str, figure: float, unit: str, bar: str | None = None, detail: str = "") -> Row:
    """One measured figure; the bar is ">= x" or "<= x"."""
    holds = None
    if bar is not None:
        sign, limit = bar.split()
        holds = bool(figure >= float(limit) if sign == ">=" else figure <= float(limit))
    return {
        "name": name, "figure": float(figure), "unit": unit, "bar": bar, "holds": holds,
        "detail": detail,
    }  # fmt: skip


def show(r: Row) -> None:
    mark = {True: "holds", False: "FAILS", None: ""}[r["holds"]]
    print(
        f"{r['name']:58} {r['figure']:>9.4g} {r['unit']:8} {r['bar'] or '':11} {mark:6} "
        f"{r['detail']}",
        flush=True,
    )


def mean_row(name: str, figures: list[float], bar: str | None = None, detail: str = "") -> Row:
    error = statistics.stdev(figures) / len(figures) ** 0.5 if len(figures) > 1 else float("nan")
    detail = f"standard error {error:.2f}, {len(figures)} keys{'; ' if detail else ''}{detail}"
    return row(name, statistics.mean(figures), "%", bar, detail)


class Bench(NamedTuple):
    """A folded network, its training samples with the float outputs, its judge."""

    graph: jqnt.Graph
    params: dict[str, Any]
    batches: list[dict[str, np.ndarray]]
    data: dict[str, Any]
    top1: Callable[..., float]


def bench(data: Path, stem: str, images: Images, size: int, shift: int = 0) -> Bench:
    """`shift` pixels: the samples that train are those images, mirrored, and moved both ways."""
    graph, params, _ = jqnt.import_onnx(model_path(data, stem))
    graph, params = jqnt.fold_bn(*jqnt.cleanup(graph, params))
    judge = jqnt.evaluator(jqnt.metric_named("top1"), images.evaluation(size), graph.inputs)
    run = jqnt.session(graph, params)
    batches = images.calibration(size)
    more = [{"input": moved} for b in batches for moved in moves(b["input"], shift)]
    taught = with_targets(jqnt.lower(graph), params, more)
    joined = {name: jnp.concatenate([b[name] for b in taught]) for name in taught[0]}
    return Bench(
        graph, params, batches, joined, lambda p, q: judge(lambda x: run(p, q, x))
    )  # fmt: skip


def moves(images: np.ndarray, shift: int) -> list[np.ndarray]:
    """The images alone for no shift; else with their mirror images and two diagonal shifts."""
    if not shift:
        return [images]
    mirrored, size = images[..., ::-1], images.shape[-1]
    wide = [(0, 0), (0, 0), (shift, shift), (shift, shift)]
    one, other = (np.pad(x, wide, mode="edge") for x in (images, mirrored))
    end = 2 * shift
    return [
        images,
        mirrored,
        one[:, :, end : end + size, :size],
        other[:, :, :size, end : end + size],
    ]


def rules(graph: jqnt.Graph, weights: int, activations: int) -> tuple[jqnt.Rule, ...]:
    """A width for all weights and activations, 8 bits for the first and the last layer."""
    ends = jqnt.first_and_last(graph)
    return (
        jqnt.Rule(name=ends, role="weight", format="int8", granularity="channel"),
        jqnt.Rule(name=graph.inputs, role="activation", format="uint8"),
        jqnt.Rule(op="Gemm", role="activation", format="uint8"),
        *jqnt.scheme(f"int{weights}", f"uint{activations}"),
    )


def calibrated(b: Bench, chosen: jqnt.Plan) -> dict[str, Any]:
    return jqnt.calibrate(
        jqnt.lower(b.graph), b.params, chosen, b.batches, observer=sqnr(),
        weight_observer=exact_mse(),
    )  # fmt: skip


class Trainer:
    """One compiled program for all widths and keys of a network: bits and data are values."""

    def __init__(
        self, b: Bench, chosen: jqnt.Plan, theta: Any, steps: int, size: int, *,
        rates: tuple[float, float] = RATES, **method: Any,
    ):  # fmt: skip
        self.steps, self.source = steps, Draw(b.data, size)
        self.method = Method(**method)
        self.optimizer = relative_adam(*rates, steps)
        self.task = task(b.graph, b.params, theta, chosen, kl, self.method, b.params)

    def __call__(self, params: Any, theta: Any, key: Any) -> tuple[Any, Any]:
        params = {n: jnp.asarray(p) for n, p in params.items()}
        value = {**self.task.value, "params": params, "theta": theta}
        found = fit(
            self.task.loss, value, self.optimizer, self.source, steps=self.steps,
            trainable=of_kind(*self.method.kinds), project=self.task.project, key=key,
        ).theta  # fmt: skip
        return jax.device_get(found["params"]), found["theta"]


def keys(count: int) -> list[Any]:
    return [jax.random.key(i) for i in range(count)]


def widths(
    b: Bench, stem: str, cases: dict[tuple[int, int], float | None], epochs: int, count: int
) -> Iterator[Row]:
    """PTQ and QAT at each (weight, activation) width; the value is the drop allowed, in points."""
    real = b.top1(b.params, {})
    yield row(f"{stem}: float", real, "%")
    trainer = None
    size = 32
    steps = epochs * (len(next(iter(b.data.values()))) // size)
    for (w, a), drop in cases.items():
        chosen = jqnt.plan(b.graph, rules(b.graph, w, a))
        theta = parametrize(calibrated(b, chosen), chosen, ranges.lsq)
        name = f"{stem} W{w}A{a}"
        yield row(f"{name}: nearest, MSE ranges", b.top1(b.params, jqnt.bind(theta, chosen)), "%")
        trainer = trainer or Trainer(b, chosen, theta, steps, size)
        tops = []
        for key in keys(count):
            params, learned = trainer(b.params, theta, key)
            tops.append(b.top1(params, jqnt.bind(learned, chosen)))
        bar = None if drop is None else f">= {real - drop:.2f}"
        yield mean_row(f"{name}: QAT, {epochs} epochs", tops, bar)


def whole_digits(data: Path) -> Images:
    """All 898 training images."""
    images = digits(data)
    with np.load(data / "digits_32x32.npz") as file:
        x = file["x_train"].reshape(-1, 1, 32, 32).astype(np.float32)
    return Images(x, images.eval, images.labels)


def resnet8(data: Path, count: int) -> Iterator[Row]:
    b = bench(data, "digits_resnet8_folded", whole_digits(data), 100)
    cases = {(4, 4): 0.8, (3, 3): 1.0, (2, 2): 4.0}
    yield from widths(b, "digits resnet8", cases, 20, count)


def mbv2(data: Path, count: int) -> Iterator[Row]:
    b = bench(data, "digits_mbv2_folded", whole_digits(data), 100)
    yield from widths(b, "digits mbv2", {(4, 4): 1.5, (3, 3): None, (2, 2): None}, 20, count)


def aimet(data: Path, count: int) -> Iterator[Row]:
    """aimet-torch on the same file: W4A8 96.89 by PTQ, 97.44 after 3 epochs of QAT."""
    b = bench(data, "digits_resnet8_folded", whole_digits(data), 100)
    chosen = jqnt.plan(b.graph, jqnt.scheme("int4", "uint8"))
    theta = parametrize(calibrated(b, chosen), chosen, ranges.lsq)
    name = "digits resnet8 W4A8, all layers"
    yield row(f"{name}: nearest, MSE ranges", b.top1(b.params, jqnt.bind(theta, chosen)), "%")
    trainer = Trainer(b, chosen, theta, 3 * (898 // 32), 32)
    tops = []
    for key in keys(count):
        params, learned = trainer(b.params, theta, key)
        tops.append(b.top1(params, jqnt.bind(learned, chosen)))
    yield mean_row(f"{name}: QAT, 3 epochs", tops, ">= 97.44", "aimet-torch 97.44")


def against_rounding(
    b: Bench,
    stem: str,
    cases: dict[tuple[int, int], float | None],
    steps: int,
    size: int,
    count: int,
) -> Iterator[Row]:
    """AdaRound, then ranges learned alone, or weights and ranges: QAT above both."""
    real = b.top1(b.params, {})
    yield row(f"{stem}: float", real, "%")
    trainers: dict[str, Trainer] = {}
    for (w, a), least in cases.items():
        chosen = jqnt.plan(b.graph, rules(b.graph, w, a) if a < 8 else jqnt.scheme(f"int{w}"))
        theta = calibrated(b, chosen)
        name = f"{stem} W{w}A{a}"
        rounded = reconstruct(
            b.graph,
            b.params,
            theta,
            chosen,
            b.batches,
            learn_rounding,
            bias=True,
            key=jax.random.key(0),
        )
        bound = jqnt.bind(rounded.theta, chosen)
        yield row(f"{name}: AdaRound + bias", b.top1(rounded.params, bound), "%")
        hard, _ = jqnt.freeze(b.graph, rounded.params, bound)
        from_there = {
            n: q.affine if isinstance(q, jqnt.SoftRound) else q for n, q in rounded.theta.items()
        }
        from_there = parametrize(from_there, chosen, ranges.lsq)
        if not trainers:
            trainers = {
                kind: Trainer(b, chosen, from_there, n, size, rates=rates, kinds=kinds)
                for kind, kinds, n, rates in (
                    # Ranges alone end lower at the rate that they have beside the weights.
                    ("ranges", ("ranges",), max(1, steps // 4), (0.0, 3e-3)),
                    ("all", ("weights", "ranges"), steps, RATES),
                )
            }
        tops: dict[str, list[float]] = {"ranges": [], "all": []}
        for key in keys(count):
            for kind, trainer in trainers.items():
                params, learned = trainer(hard, from_there, key)
                tops[kind].append(b.top1(params, jqnt.bind(learned, chosen)))
        yield mean_row(f"{name}: AdaRound + LSQ ranges", tops["ranges"])
        bar = None if least is None else f">= {least:g}"
        yield mean_row(f"{name}: QAT from there, {steps} steps", tops["all"], bar)
        gains = [q - r for q, r in zip(tops["all"], tops["ranges"], strict=True)]
        yield mean_row(f"{name}: QAT over AdaRound + LSQ, points", gains, ">= 0")


def resnet20(data: Path, count: int) -> Iterator[Row]:
    b = bench(data, "cifar10_resnet20", cifar10(data), 100, shift=2)
    cases = {(4, 4): 78.5, (3, 3): 75.0}
    yield from against_rounding(b, "cifar10_resnet20", cases, 600, 50, count)


def mobilenetv1(data: Path, count: int) -> Iterator[Row]:
    b = bench(data, "imagenet_mobilenetv1_025", imagenet(data, "standard"), 20, shift=12)
    yield from against_rounding(b, "imagenet_mobilenetv1_025", {(4, 8): None}, 300, 20, count)


def power_of_two_plan(b: Bench, bits: int) -> jqnt.Plan:
    """One symmetric scale a tensor, 8-bit activations, unsigned where no value is negative."""
    both = jqnt.scheme(f"int{bits}", "uint8", per_channel=False)
    seen = jqnt.calibrate(jqnt.lower(b.graph), b.params, jqnt.plan(b.graph, both), b.batches)
    signed = tuple(n for n, q in seen.items() if np.asarray(q.zero_point).any())
    return jqnt.plan(
        b.graph, (jqnt.Rule(name=signed, role="activation", format="int8", symmetric=True), *both)
    )


def tqt(data: Path, count: int) -> Iterator[Row]:
    """Jain et al. 2020, table 1: static thresholds fail on MobileNets, trained ones do not."""
    b = bench(data, "digits_mbv2_skew_folded", whole_digits(data), 100)
    real = b.top1(b.params, {})
    yield row("digits mbv2_skew: float", real, "%")
    epochs, trainer = 10, None
    collapse, bar = f"<= {real - 50:.2f}", f">= {real - 0.5:.2f}"
    for bits in (8, 6):
        chosen = power_of_two_plan(b, bits)
        theta = jqnt.calibrate(jqnt.lower(b.graph), b.params, chosen, b.batches)
        theta = parametrize(theta, chosen, ranges.tqt)
        name = f"digits mbv2_skew W{bits}A8, power-of-two scale a tensor"
        static = b.top1(b.params, jqnt.bind(theta, chosen))
        detail = "" if static <= real - 50 else "this network does not collapse at this width"
        yield row(f"{name}: static", static, "%", collapse, detail)
        trainer = trainer or Trainer(b, chosen, theta, epochs * (898 // 32), 32)
        tops = []
        for key in keys(count):
            params, learned = trainer(b.params, theta, key)
            tops.append(b.top1(params, jqnt.bind(learned, chosen)))
        yield mean_row(f"{name}: TQT, {epochs} epochs", tops, bar)


def oscillation(data: Path, count: int) -> Iterator[Row]:
    """Nagel et al. 2022, section 2: one weight whose optimum lies between two codes."""
    grid = jqnt.Affine(jnp.float32(1), jnp.float32(0), jnp.float32(4))
    distances = jnp.asarray([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4])
    batch = {"target": 3 + distances}
    steps, rate = 6000, 0.01

    def run(strength: float, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        damp = dampening(lambda step: strength * step / steps)

        def loss(value, batch, *, step, key):
            w = value["w"][None]
            error = 0.5 * jnp.sum((batch["target"] - grid(w)) ** 2)
            return error + damp({"w": w}, {"w": grid}, step), {}

        def project(value, aux, *, step):
            state = track(value["o"], grid.codes(value["w"]), threshold)
            held = jnp.where(state.frozen > 0, jnp.round(state.mean), value["w"])
            changed = (grid.codes(held) != grid.codes(value["w"])) | (value["o"].code != state.code)
            late = value["late"] + jnp.where(step >= steps // 2, changed, False)
            return {"w": held, "o": state.replace(code=grid.codes(held)), "late": late}

        start_at = jnp.full(distances.shape, 3.2)
        value = {"w": start_at, "o": still(grid.codes(start_at)), "late": jnp.zeros(8)}
        found = fit(
            loss, value, optax.sgd(rate), Whole(batch), steps=steps, chunk=steps,
            trainable=lambda path, leaf: path[0].key == "w", project=project, key=keys(1)[0],
        ).theta  # fmt: skip
        return np.asarray(found["late"]) / (steps / 2), np.asarray(found["w"])

    free, _ = run(0.0, np.inf)
    d = np.asarray(distances, np.float64)
    correlation = float(np.corrcoef(d, free)[0, 1])
    slope = float(np.polyfit(d, free, 1)[0])
    yield row("oscillation: frequency against distance, correlation", correlation, "", ">= 0.99")
    yield row("oscillation: changes a step, per unit of distance", slope, "", ">= 1.9", "law: 2")
    damped, _ = run(1.0, np.inf)
    yield row("oscillation: changes a step, undampened, largest", free.max(), "")
    yield row("oscillation: changes a step, dampened, largest", damped.max(), "", "<= 0.01")
    frozen, w = run(0.0, 0.05)
    yield row("oscillation: changes a step, frozen above 0.05, largest", frozen.max(), "", "<= 0.1")
    often = free > 0.1
    wrong = np.abs(w[often] - 3).max()
    yield row("oscillation: frozen weights from their nearest code", wrong, "", "<= 0")


def cost_batch(data: Path, stem: str, graph: jqnt.Graph) -> dict[str, np.ndarray]:
    if stem == "minilm_l6_stsb":
        with np.load(data / "stsb_tokens.npz") as file:
            ids, mask = (file[f"calib_{k}_a"][:16].astype(np.int32) for k in ("ids", "mask"))
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    if stem == "cifar10_resnet20":
        return {"input": cifar10(data).calib[:32]}
    return {"input": imagenet(data, "unit").calib[:4]}


def cost(stem: str, data: Path, count: int) -> Iterator[Row]:
    """One step inside the scan: SGD with momentum, squared error to the float output."""
    graph, params, _ = jqnt.import_onnx(model_path(data, stem))
    graph, params = jqnt.fold_bn(*jqnt.cleanup(graph, params))
    batch = cost_batch(data, stem, graph)
    chosen = jqnt.plan(graph, jqnt.scheme("int8", "uint8"))
    theta = jqnt.calibrate(jqnt.lower(graph), params, chosen, [batch])
    learned = parametrize(theta, chosen, ranges.lsq)
    taught = with_targets(jqnt.lower(graph), params, [batch])[0]
    taught = {name: jnp.asarray(value) for name, value in taught.items()}
    optimizer = optax.sgd(1e-5, momentum=0.9)
    out = graph.outputs[-1]
    nothing = jqnt.Plan({})

    def error(outputs, batch):
        return jnp.mean((outputs[out] - batch[f"target:{out}"]) ** 2)

    runs = {
        "float": task(graph, params, {}, nothing, error, Method()),
        "LSQ": task(graph, params, learned, chosen, error, Method()),
        "fast": task(graph, params, theta, chosen, error, Method(fast=True, kinds=("weights",))),
    }
    steps = {"cifar10_resnet20": 10, "imagenet_mobilenetv2_10": 2, "minilm_l6_stsb": 2}[stem]
    compiled: dict[str, float] = {}
    states = {}
    for name, made in runs.items():
        kinds = ("weights",) if name != "LSQ" else ("weights", "ranges")
        now = start(made.value, optimizer, trainable=of_kind(*kinds), key=keys(1)[0])
        begun = time.perf_counter()
        advance(made.loss, now, optimizer, Whole(taught), steps=1, project=made.project)
        compiled[name] = time.perf_counter() - begun
        states[name] = now
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(max(count, 3)):
        for name, made in runs.items():
            begun = time.perf_counter()
            advance(made.loss, states[name], optimizer, Whole(taught), steps=steps,
                    project=made.project)  # fmt: skip
            times[name].append((time.perf_counter() - begun) / steps)
    base = statistics.median(times["float"])
    yield row(
        f"{stem}: float step", 1e3 * base, "ms", None, f"compiled in {compiled['float']:.1f} s"
    )
    for name, bar in (("LSQ", "<= 1.8"), ("fast", "<= 1.2")):
        ratio = statistics.median(a / f for a, f in zip(times[name], times["float"], strict=True))
        own = f"{1e3 * statistics.median(times[name]):.4g} ms"
        yield row(f"{stem} W8A8: {name} step over float step", ratio, "", bar, own)
        yield row(f"{stem} W8A8: {name}, compilation", compiled[name], "s", "<= 60")


TABLES: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    "resnet8": resnet8,
    "mbv2": mbv2,
    "aimet": aimet,
    "resnet20": resnet20,
    "mobilenetv1": mobilenetv1,
    "tqt": tqt,
    "oscillation": oscillation,
    "cost_resnet20": partial(cost, "cifar10_resnet20"),
    "cost_mobilenetv2": partial(cost, "imagenet_mobilenetv2_10"),
    "cost_minilm": partial(cost, "minilm_l6_stsb"),
}

if __name__ == "__main__":
    sys.exit(main())
