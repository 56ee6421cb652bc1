"""aimet-onnx's AdaRound against ours: how long until the layers are as near to the float ones?"""

import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from material import DATA, digits, model_path
from reconstruction_case import Row, folded, row

import jqnt
from jqnt.learn.reconstruct import reconstruct
from jqnt.learn.rounding import learn_rounding
from jqnt.learn.sampled import reconstruct_samples
from jqnt.observers import exact_mse

__all__ = ["race", "short_race"]

FULL = 10_000
"""The peer's default number of iterations of a layer."""
FEW = (100, 500)
"""Two short runs give its time per iteration where the full one would take too long."""
HELD_OUT = 256
PEER = Path(__file__).resolve().parent.parent / ".venv-peers" / "bin" / "python"
KEY = jax.random.key(0)


def race(data: Path = DATA, *, full: bool = True) -> Iterator[Row]:
    """The full count on resnet8; equal counts on mbv2, from which its full time is extrapolated."""
    if not PEER.is_file():
        print(f"no {PEER}: scripts/peers makes it", file=sys.stderr)
        return
    yield from one(data, "digits_resnet8_folded", full=full)
    yield from one(data, "digits_mbv2_folded", full=False)


def short_race(data: Path = DATA) -> Iterator[Row]:
    """Equal counts on both, where ten minutes of the peer are too long."""
    yield from race(data, full=False)


def one(data: Path, stem: str, *, full: bool) -> Iterator[Row]:
    """Both at int4, min-max ranges per channel, 512 samples; errors on 256 that neither saw."""
    images = digits(data)
    graph, params = folded(data, stem)
    batches = images.calibration(64)
    plan = jqnt.plan(graph, jqnt.scheme("int4", "uint8"))
    apply = jqnt.lower(graph)
    held = {"input": jnp.asarray(images.eval[:HELD_OUT])}
    acts = jqnt.bind(jqnt.calibrate(apply, params, plan, batches), plan)
    acts = {name: q for name, q in acts.items() if name not in params}
    error = judge(graph, params, acts, held)
    if full:
        seconds, theirs = peer(data, stem, images.calib, FULL)
        steps, how = 500, f"{FULL} iterations a layer, as it is by default"
    else:
        short, _ = peer(data, stem, images.calib, FEW[0])
        long, theirs = peer(data, stem, images.calib, FEW[1])
        each = (long - short) / (FEW[1] - FEW[0])
        seconds, steps = long + each * (FULL - FEW[1]), FEW[1]
        how = f"extrapolated from {FEW} iterations; errors at {FEW[1]} on both sides"
    aim = error({**params, **theirs})
    yield row(f"{stem} W4A8, aimet-onnx: error of the layers", aim, "dB", None, how)
    yield row(f"{stem} W4A8, aimet-onnx: AdaRound", seconds, "seconds", None, how)
    for name, bar, run in (("gram", 30.0, gram), ("sampled", 5.0, sampled)):
        jax.clear_caches()
        start = time.perf_counter()
        qparams = run(graph, params, plan, batches, steps)
        spent = time.perf_counter() - start
        own = {n: np.asarray(q(jnp.asarray(params[n]))) for n, q in qparams.items() if n in params}
        got = error({**params, **{n: w for n, w in own.items() if n in theirs}})
        detail = f"ours {spent:.1f} s, compilation included"
        label = f"{stem} W4A8, {name}"
        yield row(f"{label}: error of the layers", got, "dB", None)
        yield row(f"{label}: below the peer's by", aim - got, "dB", 0.0)
        yield row(f"{label}: times faster", seconds / spent, "x", bar, detail)


def gram(graph: Any, params: Any, plan: Any, batches: Any, steps: int) -> dict[str, Any]:
    """AdaRound under the exact error of each layer, from the calibration on."""
    theta = jqnt.calibrate(jqnt.lower(graph), params, plan, batches, weight_observer=exact_mse())
    solve = functools.partial(learn_rounding, steps=steps)
    found = reconstruct(graph, params, theta, plan, batches, solve, key=KEY)
    return jqnt.bind(found.theta, plan)


def sampled(graph: Any, params: Any, plan: Any, batches: Any, steps: int) -> dict[str, Any]:
    """AdaRound on random batches, the activation function inside, from the calibration on."""
    theta = jqnt.calibrate(jqnt.lower(graph), params, plan, batches, weight_observer=exact_mse())
    found = reconstruct_samples(
        graph, params, theta, plan, batches, params, unit="layer", drop=0.0, scales=False,
        steps=steps, key=KEY,
    )  # fmt: skip
    return jqnt.bind(found.theta, plan)


def judge(graph: Any, params: Any, acts: Any, held: Any) -> Callable[[Any], float]:
    """The mean over layers of 10 log10 of the error's power over the float output's.

    Of whole networks: the errors of earlier layers are in those of later ones.
    """
    layers = [n.outputs[0] for n in graph.nodes if n.op in ("Conv", "Gemm", "MatMul")]
    run = jax.jit(jqnt.lower(graph), static_argnames="want")
    exact = run(params, {}, held, want=tuple(layers))

    def error(rounded: Any) -> float:
        found = run(rounded, acts, held, want=tuple(layers))
        each = [float(jnp.sum((found[n] - exact[n]) ** 2) / jnp.sum(exact[n] ** 2)) for n in layers]
        return float(np.mean(10 * np.log10(each)))

    return error


def peer(
    data: Path, stem: str, calib: np.ndarray, iterations: int
) -> tuple[float, dict[str, np.ndarray]]:
    """Seconds of the peer's AdaRound, and the weights it leaves."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "data.npz", Path(folder) / "out.npz"
        np.savez(given, calib=calib)
        script = Path(__file__).with_name("adaround_with_aimet.py")
        command = [PEER, script, model_path(data, stem), given, made, iterations]
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"aimet-onnx failed on {stem}: {done.stderr[-500:]}")
        seconds = json.loads(done.stdout.splitlines()[-1])["seconds"]
        with np.load(made) as file:
            return seconds, {name: file[name] for name in file.files}
