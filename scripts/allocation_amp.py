"""AIMET-ONNX's automatic mixed precision and jqnt's search on the same models, in one run."""

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from material import Images, digits, model_path

from jqnt import npu
from jqnt.choices import with_choices
from jqnt.freeze import freeze
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.graph.session import session
from jqnt.learn.calibrate import calibrate
from jqnt.learn.decide import decide_theta
from jqnt.learn.divergence import kl
from jqnt.learn.prices import prices
from jqnt.learn.search import search
from jqnt.learn.space import space
from jqnt.observers import exact_mse
from jqnt.placement import plan
from jqnt.plan import Plan, Spec, Theta, bind, branch_specs
from jqnt.thaw import thaw
from jqnt.transforms.cleanup import cleanup
from jqnt.types import Params

__all__ = ["amp_rows"]

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / ".venv-peers" / "bin" / "python"
MENU = (("int8", "int8"), ("int4", "int8"), ("int8", "int16"))
SAMPLES = 64


def amp_rows(data: Path) -> Iterator[dict[str, Any]]:
    """Per model: accuracy at the bit operations of AMP's plan, and how much faster it is found."""
    if not PEER.is_file():
        yield _row("AIMET-ONNX AMP", 0, "", None, None, f"not measured: no {PEER} (scripts/peers)")
        return
    images = digits(data)
    for stem in ("digits_resnet8_folded", "digits_mbv2_folded"):
        path = model_path(data, stem)
        theirs = _peer(path, data)
        first = _ours(path, images, theirs)
        warm = _ours(path, images, theirs)
        detail = f"{first['top1']:.2f} % against {theirs['accuracy']:.2f} %, {first['detail']}"
        lead = first["top1"] - theirs["accuracy"]
        yield _row(f"{stem}: accuracy at AMP's BitOps", lead, "points", ">= 0", lead >= 0, detail)
        for kind, own in (("", first), (", again in this process", warm)):
            ratio = theirs["seconds"] / own["seconds"]
            detail = f"{own['seconds']:.2f} against {theirs['seconds']:.2f} s"
            bar, holds = (None, None) if kind else (">= 5", ratio >= 5)
            yield _row(f"{stem}: AMP's time / jqnt's{kind}", ratio, "x", bar, holds, detail)


def _peer(path: Path, data: Path) -> dict[str, Any]:
    with np.load(data / "digits_32x32.npz") as file, tempfile.TemporaryDirectory() as folder:
        shape = (-1, 1, 32, 32)
        np.savez(
            Path(folder) / "d.npz",
            calib=file["x_train"][:512].reshape(shape).astype(np.float32),
            labels=file["y_train"][:512],
            eval=file["x_test"].reshape(shape).astype(np.float32),
            eval_labels=file["y_test"],
        )
        command = [PEER, ROOT / "scripts" / "amp_peer.py", path, Path(folder) / "d.npz"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the peer failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _ours(path: Path, images: Images, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Search within AMP's bit operations; everything from the imported model on is timed."""
    graph, params, _ = import_onnx(path)
    graph, params = cleanup(graph, params)
    work, device = npu.workload(graph, params), npu.device("embedded-demo")
    budget = _bit_operations(graph, work, theirs)
    batches = [{graph.inputs[0]: images.calib}]
    begin = time.perf_counter()
    open_plan = with_choices(plan(graph), graph, MENU)
    theta = calibrate(session(graph, params), params, open_plan, batches)  # min-max, as the peer
    priced = prices(open_plan, work, device, ("bitops",))
    some = [{graph.inputs[0]: images.calib[:SAMPLES]}]
    problem = space(
        graph, params, open_plan, theta, priced, some, divergence=kl, batch_size=SAMPLES
    )
    found = search(problem, [budget], steps=0, key=jax.random.key(0))
    # the same bits with weight grids of least error: kept if the true loss says so
    finer = _finer(theta, open_plan, params)
    row = problem.trial.branches(list(found.assignment.values()))
    loss = problem.trial.losses(params, finer, row[None], row, problem.batches)[0]
    chosen = found.theta
    if loss < found.loss:
        chosen = decide_theta(finer, open_plan, found.assignment)
    seconds = time.perf_counter() - begin
    frozen, encodings = freeze(graph, params, bind(chosen, found.plan))
    run, qparams = jax.jit(lower(graph)), thaw(encodings)
    right = [
        np.asarray(next(iter(run(frozen, qparams, {graph.inputs[0]: b["input"]}).values())))
        .argmax(1) == b["labels"]
        for b in images.evaluation(128)
    ]  # fmt: skip
    weights = {w: found.plan.specs[w].format.bits for w in work.weights if w in found.plan.specs}
    other = sum(bits != theirs["weights"].get(w, 8) for w, bits in weights.items())
    spent = (
        f"{found.cost['bitops'] / 1e9:.4g} of {budget / 1e9:.4g} GBitOps, "
        f"{other} of {len(weights)} weights in other bits than AMP's"
    )
    return {"seconds": seconds, "top1": 100 * np.concatenate(right).mean(), "detail": spent}


def _finer(theta: Theta, plan: Plan, params: Params) -> Theta:
    """theta with the weight grids of least squared error in place of those that cover all."""
    own = exact_mse()
    alike: dict[Any, list[tuple[str, str, int, Spec]]] = {}
    for name, choice in plan.choices.items():
        for t in choice.tensors:
            for k, spec in enumerate(branch_specs(choice, t)):
                if spec.role == "weight" and t in params:
                    alike.setdefault((spec.format, spec.symmetric), []).append((name, t, k, spec))

    @jax.jit
    def held(params: Params) -> list[list[Any]]:
        return [
            [own.update(own.init(params[t], spec.granularity), params[t]) for _, t, _, spec in keys]
            for keys in alike.values()
        ]

    found = {n: {t: list(b) for t, b in theta[n].branches.items()} for n in plan.choices}
    for (kind, keys), states in zip(alike.items(), held(params), strict=True):
        assert own.finish_all is not None
        for (name, t, k, _), grid in zip(keys, own.finish_all(states, *kind), strict=True):
            found[name][t][k] = grid
    return theta | {
        n: replace(theta[n], branches={t: tuple(b) for t, b in own.items()})
        for n, own in found.items()
    }


def _bit_operations(graph: Graph, work: npu.Workload, theirs: Mapping[str, Any]) -> float:
    """sum of macs * bits of the weight * bits of the input, as AMP left them; 8 bits and the
    nearest quantized tensor before where the peer has no quantizer."""
    total = 0.0
    for i, weight in enumerate(work.weights):
        if weight:
            name = work.inputs[i][0]
            while name not in theirs["activations"] and name in graph.producer:
                name = graph.producer[name].inputs[0]
            bits = theirs["weights"].get(weight, 8) * theirs["activations"].get(name, 8)
            total += float(work.dims.macs[i]) * bits
    return total


def _row(name, figure, unit, bar, holds, detail="") -> dict[str, Any]:
    return {
        "name": name, "figure": float(figure), "unit": unit, "bar": bar,
        "holds": None if holds is None else bool(holds), "detail": detail,
    }  # fmt: skip
