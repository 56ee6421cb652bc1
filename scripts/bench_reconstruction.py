#!/usr/bin/env python3
"""Post-training reconstruction on real models: speed, accuracy, mixed plans, exactness.

bench_reconstruction.py [--only ROW] [--json] [--data DIR]

ROW is one of race (ten minutes of the peer alone; short_race, which is run only if named, makes
do with less), resnet20, resnet20_blocks, mobilenetv2, mobilenetv1, minilm, digits, order_digits,
order_resnet20, mixed, exact, equalization. Everything is measured in this run; a row without a
bar only informs. The layer-wise results do not depend on a key, since every step sees all
samples; block-wise ones are given for three.
"""

import argparse
import functools
import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from material import DATA, FLOAT_CNNS, Images, cifar10, digits, imagenet
from reconstruction_case import Bench, Row, bench, folded, row, sentences
from reconstruction_race import race, short_race

import jqnt
from jqnt.graph.ir import Node
from jqnt.learn.best_scale import learn_scale_and_rounding
from jqnt.learn.gram import accumulate, zero_moments
from jqnt.learn.layer import layer_of
from jqnt.learn.reconstruct import reconstruct
from jqnt.learn.rounding import choices, learn_rounding
from jqnt.learn.roundings import ROUNDINGS, round_weights
from jqnt.learn.sampled import reconstruct_samples
from jqnt.observers import MINMAX, exact_mse, sqnr

KEYS = tuple(jax.random.key(i) for i in range(3))
METHODS: dict[str, dict[str, Any]] = {
    "AdaRound": {},
    "AdaRound + bias": {"bias": True},
    "AdaRound + bias, from the refitted weight": {"bias": True, "ridge": 0.01},
    "descent alone + bias": {"bias": True, "steps": 0},
    "AdaRound + bias + scales": {"bias": True, "solve": learn_scale_and_rounding},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=tuple(TABLES), help="one table")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    if not (args.data / "models").is_dir():
        print(f"error: no folder {args.data / 'models'}; give --data DIR", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for name in [args.only] if args.only else [n for n in TABLES if n != "short_race"]:
        for found in TABLES[name](args.data):
            rows.append(found)
            if not args.json:
                show(found)
    if args.json:
        print(json.dumps(rows, indent=1))
    return 0 if all(r["holds"] is not False for r in rows) else 1


def show(r: Row) -> None:
    mark = {True: "holds", False: "FAILS", None: ""}[r["holds"]]
    print(
        f"{r['name']:66} {r['figure']:>9.4g} {r['unit']:6} {r['bar'] or '':9} {mark:6} "
        f"{r['detail']}",
        flush=True,
    )


def layerwise(
    b: Bench,
    stem: str,
    bits: int,
    bars: dict[str, float],
    limit_s: float | None,
    methods: tuple[str, ...] = tuple(METHODS),
) -> Iterator[Row]:
    """Nearest rounding and each method at so many weight bits, 8-bit activations."""
    plan = jqnt.plan(b.graph, jqnt.scheme(f"int{bits}", "uint8"))
    name = f"{stem} W{bits}A8"
    apply = jqnt.lower(b.graph)
    for label, observer in (("min-max", MINMAX), ("MSE", exact_mse())):
        theta = jqnt.calibrate(
            apply, b.params, plan, b.batches, observer=sqnr(), weight_observer=observer
        )
        yield row(
            f"{name}: nearest, {label} scales", b.score(b.params, jqnt.bind(theta, plan)), "%"
        )
    for method in methods:
        settings = dict(METHODS[method])
        bias = settings.pop("bias", False)
        solve = functools.partial(settings.pop("solve", learn_rounding), **settings)
        start = time.perf_counter()
        found = reconstruct(
            b.graph, b.params, theta, plan, b.batches, solve, bias=bias, key=KEYS[0]
        )
        seconds = time.perf_counter() - start
        top = b.score(found.params, jqnt.bind(found.theta, plan))
        yield row(f"{name}: {method}", top, "%", bars.get(method))
        yield row(f"{name}: {method}, {len(found.layers)} layers", seconds, "s", limit_s)


def resnet20(data: Path) -> Iterator[Row]:
    b = bench(data, "cifar10_resnet20", cifar10(data), 100)
    yield row("cifar10_resnet20: float", b.score(b.params, {}), "%")
    yield from layerwise(b, "cifar10_resnet20", 4, {"AdaRound": 79.0, "AdaRound + bias": 79.6}, 30)
    with_scales = "AdaRound + bias + scales"
    yield from layerwise(b, "cifar10_resnet20", 3, {with_scales: 77.5}, 30)
    yield from layerwise(b, "cifar10_resnet20", 2, {with_scales: 60.0}, 30)


def resnet20_blocks(data: Path) -> Iterator[Row]:
    """BRECQ and QDrop at two bits, from the layer-wise result."""
    b = bench(data, "cifar10_resnet20", cifar10(data), 100)
    plan = jqnt.plan(b.graph, jqnt.scheme("int2", "uint8"))
    theta = jqnt.calibrate(
        jqnt.lower(b.graph), b.params, plan, b.batches, observer=sqnr(),
        weight_observer=exact_mse(),
    )  # fmt: skip
    solve = learn_scale_and_rounding
    first = reconstruct(b.graph, b.params, theta, plan, b.batches, solve, bias=True, key=KEYS[0])
    for label, drop in (("BRECQ", 0.0), ("QDrop", 0.5)):
        tops, seconds = [], []
        for key in KEYS:
            start = time.perf_counter()
            found = reconstruct_samples(
                b.graph, first.params, first.theta, plan, b.batches, b.params, drop=drop,
                fisher=not drop, key=key,
            )  # fmt: skip
            seconds.append(time.perf_counter() - start)
            tops.append(b.score(first.params, jqnt.bind(found.theta, plan)))
        error = statistics.stdev(tops) / len(tops) ** 0.5
        name = f"cifar10_resnet20 W2A8: {label}"
        yield row(name, statistics.mean(tops), "%", 60.0, f"standard error {error:.2f}, 3 keys")
        yield row(f"{name}, median", statistics.median(seconds), "s")


def mobilenetv2(data: Path) -> Iterator[Row]:
    b = bench(data, "imagenet_mobilenetv2_10", imagenet(data, "unit"), 20)
    yield row("imagenet_mobilenetv2_10: float", b.score(b.params, {}), "%")
    bars = {"AdaRound": 75.0, "AdaRound + bias": 82.0}
    yield from layerwise(b, "imagenet_mobilenetv2_10", 4, bars, 240, tuple(bars))
    yield row("peak memory of this process", peak_gib(), "GiB", 4.0)


def mobilenetv1(data: Path) -> Iterator[Row]:
    b = bench(data, "imagenet_mobilenetv1_025", imagenet(data, "standard"), 20)
    yield row("imagenet_mobilenetv1_025: float", b.score(b.params, {}), "%")
    bars = {"AdaRound + bias + scales": 45.0}
    yield from layerwise(b, "imagenet_mobilenetv1_025", 4, bars, None)


def digits_skew(data: Path) -> Iterator[Row]:
    b = bench(data, "digits_mbv2_skew_bn", digits(data), 64)
    yield row("digits_mbv2_skew_bn: float", b.score(b.params, {}), "%")
    yield from layerwise(b, "digits_mbv2_skew_bn", 4, {"AdaRound + bias": 97.0}, None)


def minilm(data: Path) -> Iterator[Row]:
    """The 36 linear layers of MiniLM: time, memory, and the rank correlation on STS-B."""
    b = sentences(data)
    yield row("minilm_l6_stsb: float", b.score(b.params, {}), "%")
    for weights, activations, method, bar, limit in (
        ("int4", "uint8", "adaround", None, 360.0),
        ("int3", "float32", "nearest", None, None),
        ("int3", "float32", "gptq", None, None),
        ("int3", "float32", "adaround", 80.5, None),
        ("int3", "uint8", "adaround-bias", None, None),
    ):
        plan = jqnt.plan(b.graph, jqnt.scheme(weights, activations))
        theta = calibrated(b, plan)
        start = time.perf_counter()
        found = round_weights(b.graph, b.params, theta, plan, b.batches, method, key=KEYS[0])
        seconds = time.perf_counter() - start
        name = f"minilm_l6_stsb {weights} {activations}: {ROUNDINGS[method].title}"
        yield row(name, b.score(found.params, jqnt.bind(found.theta, plan)), "%", bar)
        if method != "nearest":
            yield row(f"{name}, 36 layers", seconds, "s", limit)
    yield row("peak memory of this process", peak_gib(), "GiB", 4.0)


def order(stem: str, read: Callable[[Path], Images], size: int, data: Path) -> Iterator[Row]:
    """Every way of rounding by its name, with its defaults, below 4 bits."""
    b = bench(data, stem, read(data), size)
    for bits in (3, 2):
        plan = jqnt.plan(b.graph, jqnt.scheme(f"int{bits}", "uint8"))
        theta = calibrated(b, plan)
        for name, rounding in ROUNDINGS.items():
            start = time.perf_counter()
            found = round_weights(b.graph, b.params, theta, plan, b.batches, name, key=KEYS[0])
            spent = time.perf_counter() - start
            top = b.score(found.params, jqnt.bind(found.theta, plan))
            yield row(f"{stem} W{bits}A8: {rounding.title}", top, "%", None, f"{spent:.0f} s")


def mixed(data: Path) -> Iterator[Row]:
    """A plan of FP16, W8 and W4 layers: learned under it, against learned at W4 and changed then.

    The first and last layer are FP16, depthwise ones W8A8, all others W4A8. The detour learns
    everything at W4A8; then some layers get other formats, with the weights that it left, or with
    the float ones put back. Activations have the same ranges in all.
    """
    b = bench(data, "imagenet_mobilenetv2_10", imagenet(data, "unit"), 20)
    weighted = [n for n in b.graph.nodes if n.op in ("Conv", "Gemm")]
    ends, deep = (weighted[0], weighted[-1]), [n for n in weighted if n.attrs.get("group", 1) > 1]
    rules = (
        *(jqnt.Rule(name=n.name, role="weight", format="float16") for n in ends),
        *(jqnt.Rule(name=n.inputs[0], role="activation", format="float16") for n in ends),
        *(jqnt.Rule(name=n.name, role="weight", format="int8") for n in deep),
        *jqnt.scheme("int4", "uint8"),
    )
    plan = jqnt.plan(b.graph, rules)
    uniform = jqnt.plan(b.graph, jqnt.scheme("int4", "uint8"))
    theta = calibrated(b, plan)
    counts = f"{len(ends)} FP16, {len(deep)} W8, {len(weighted) - len(deep) - 2} W4"
    name = "imagenet_mobilenetv2_10, mixed"
    yield row(f"{name}: nearest", b.score(b.params, jqnt.bind(theta, plan)), "%", None, counts)
    first = calibrated(b, uniform)
    four = {n.inputs[1] for n in weighted} - {n.inputs[1] for n in (*ends, *deep)}
    solve = functools.partial(reconstruct, method=learn_rounding, bias=True, key=KEYS[0])
    found = solve(b.graph, b.params, theta, plan, b.batches)
    ours = b.score(found.params, jqnt.bind(found.theta, plan))
    before = solve(b.graph, b.params, first, uniform, b.batches)
    frozen, _ = jqnt.freeze(b.graph, before.params, jqnt.bind(before.theta, uniform))
    kept = {**theta, **{w: before.theta[w] for w in four}}
    put_back = jqnt.bind(kept, plan)
    left = jqnt.bind({**kept, **{w: first[w] for w in four}}, plan)
    detours = {
        "weights as they were left": b.score(frozen, left),
        "float weights put back": b.score(before.params, put_back),
    }
    for how, top in detours.items():
        yield row(f"{name}: AdaRound + bias, then formats changed, {how}", top, "%")
    bar = max(detours.values())
    yield row(f"{name}: AdaRound + bias under the plan", ours, "%", bar, counts)


def equalization(data: Path) -> Iterator[Row]:
    """What it moves in the float output of every model, and what it restores."""
    rng = np.random.default_rng(0)
    for stem in (*FLOAT_CNNS, "minilm_l6_stsb", "silero_vad_16k"):
        graph, params = folded(data, stem)
        even, moved = jqnt.equalize(graph, params)
        if stem == "minilm_l6_stsb":
            x = sentences(data).batches[0]
        elif stem == "silero_vad_16k":
            x = {
                "input": rng.normal(size=(4, 576)).astype(np.float32) / 10,
                "state": np.zeros((2, 4, 128), np.float32),
                "sr": np.asarray(16000, np.int64),
            }
        else:
            (name,) = graph.inputs
            dims = graph.info[name].shape
            batch = dims[0] if isinstance(dims[0], int) else 4
            x = {name: rng.normal(size=(batch, *dims[1:])).astype(np.float32)}
        before, after = (jqnt.session(g, p)(p, {}, x) for g, p in ((graph, params), (even, moved)))
        worst = max(
            float(jnp.abs(after[o] - before[o]).max() / jnp.abs(before[o]).max()) for o in before
        )
        yield row(f"{stem}: equalization moves the output by", worst, "relative", 1e-5)
    tops = {}
    for stem, even in (("digits_mbv2_bn", False), ("digits_mbv2_skew_bn", False),
                       ("digits_mbv2_skew_bn", True)):  # fmt: skip
        b = bench(data, stem, digits(data), 64, even=even)
        plan = jqnt.plan(b.graph, jqnt.scheme("int8", "uint8", per_channel=False))
        theta = jqnt.calibrate(jqnt.lower(b.graph), b.params, plan, b.batches, observer=sqnr())
        tops[stem, even] = b.score(b.params, jqnt.bind(theta, plan))
        label = f"{stem} W8A8 per tensor{', equalized' * even}"
        yield row(label, tops[stem, even], "%")
    lost = tops["digits_mbv2_bn", False] - tops["digits_mbv2_skew_bn", True]
    yield row("digits_mbv2_skew_bn, equalized: below digits_mbv2_bn by", lost, "points", 0.3)


def calibrated(b: Bench, plan: jqnt.Plan) -> dict[str, Any]:
    return jqnt.calibrate(
        jqnt.lower(b.graph), b.params, plan, b.batches, observer=sqnr(),
        weight_observer=exact_mse(),
    )  # fmt: skip


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def exact(data: Path) -> Iterator[Row]:
    """Layers of 12 weights a channel against the best of all 4,096 choices, in float64."""
    out, inner = 32, 12
    layer = layer_of(Node("Gemm", "n", ("x", "w"), ("y",), {"transB": 1}), "w", (out, inner))
    up = np.array(list(itertools.product((0, 1), repeat=inner)))
    for bits in (2, 3, 4):
        gaps, worse = [], 0
        for seed in range(5):
            k = jax.random.split(jax.random.key(seed), 4)
            x = jax.nn.relu(
                jax.random.normal(k[0], (400, inner)) @ jax.random.normal(k[1], (inner,) * 2)
            )
            lossy = x + 0.1 * jax.random.normal(k[2], x.shape)
            w = jax.random.normal(k[3], (out, inner))
            scale = jnp.max(jnp.abs(w), 1) / (2 ** (bits - 1) - 1)
            quantizer = jqnt.Affine(
                scale, jnp.zeros(out), jnp.float32(bits), granularity=jqnt.Granularity(0)
            )
            moments = accumulate(layer, zero_moments(1, out, inner), w, x, lossy)
            learned = learn_rounding(layer, moments, w, quantizer, key=KEYS[0]).quantizer(w)
            low, high, _ = (np.asarray(a[0], np.float64) for a in choices(layer, w, w, quantizer))
            x64, lossy64, w64 = (np.asarray(a, np.float64) for a in (x, lossy, w))
            residual = (x64 - lossy64) @ w64.T
            for o in range(out):
                d = low[o] + up * (high[o] - low[o])
                best = ((residual[:, o, None] - lossy64 @ d.T) ** 2).sum(0).min()
                found, near = (
                    (
                        (residual[:, o] - lossy64 @ (np.asarray(v[o], np.float64) - w64[o])) ** 2
                    ).sum()
                    for v in (learned, quantizer(w))
                )
                gaps.append(100 * (found / best - 1))
                worse += found > near * (1 + 1e-5)
        name = f"12 weights a channel, {bits} bits, 160 channels: mean gap to the optimum"
        yield row(
            name, statistics.mean(gaps), "%-gap", None, f"median {statistics.median(gaps):.2g} %"
        )
        yield row(f"{bits} bits: channels worse than nearest", worse, "of 160", None)


TABLES: dict[str, Callable[[Path], Iterator[Row]]] = {
    "race": race,
    "short_race": short_race,
    "resnet20": resnet20,
    "resnet20_blocks": resnet20_blocks,
    "mobilenetv2": mobilenetv2,
    "mobilenetv1": mobilenetv1,
    "minilm": minilm,
    "digits": digits_skew,
    "order_digits": functools.partial(order, "digits_mbv2_skew_bn", digits, 64),
    "order_resnet20": functools.partial(order, "cifar10_resnet20", cifar10, 100),
    "mixed": mixed,
    "exact": exact,
    "equalization": equalization,
}

if __name__ == "__main__":
    sys.exit(main())
