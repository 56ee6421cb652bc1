"""Fronts of real networks: the joint search against greedy, HAWQ's ranking and uniform plans.

Every plan is run with AdaRound'd weights (learned once per layer and width) on the evaluation
data, and compared sample by sample. What takes minutes can be kept in a folder, so that a run
that was cut off goes on from there.
"""

import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from material import imagenet, model_path
from scipy.stats import rankdata

from jqnt import npu
from jqnt.choices import with_choices
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.graph.session import session
from jqnt.learn.baselines import aligned, greedy, ranked, uniform
from jqnt.learn.calibrate import calibrate
from jqnt.learn.curvature import hessian_traces
from jqnt.learn.divergence import Divergence, kl, output_mse
from jqnt.learn.ledger import Ledger
from jqnt.learn.prices import menu_of, prices
from jqnt.learn.round_choices import round_choices
from jqnt.learn.search import Found
from jqnt.learn.space import Space, space
from jqnt.learn.sweep import sweep
from jqnt.observers import exact_mse, sqnr
from jqnt.placement import plan
from jqnt.plan import Plan, Theta
from jqnt.transforms.cleanup import cleanup
from jqnt.transforms.fold_bn import fold_bn
from jqnt.types import Params

__all__ = ["CASES", "Material", "front_rows", "paired"]

KEY = jax.random.key(0)
Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Material:
    """A network's data, and how it is judged: `answers` gives one value (or row) per sample,
    `figure(answers of all samples, chosen samples)` the metric on those samples."""

    path: Path
    calibration: Sequence[Batch]
    search: int
    evaluation: Sequence[Batch]
    answers: Callable[[Mapping[str, Any], Batch], np.ndarray]
    figure: Callable[[np.ndarray, np.ndarray], float]
    divergence: Divergence
    target: str = "onnxruntime"


@dataclass(frozen=True, eq=False)
class Prepared:
    """What every device shares: ranges and rounding for every width, HAWQ's scores."""

    graph: Graph
    params: Params
    open_plan: Plan
    theta: Theta
    traces: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Shelf:
    """A folder of results by name; without one, everything is made anew."""

    folder: Path | None

    def kept(self, name: str, make: Callable[[], Any]) -> tuple[Any, float]:
        """What `make` gives, and the seconds that it took when it was made."""
        path = None if self.folder is None else self.folder / f"{name}.pickle"
        if path is not None and path.is_file():
            return pickle.loads(path.read_bytes())
        begin = time.perf_counter()
        found = jax.device_get(make()), time.perf_counter() - begin
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.with_suffix(".part")
            whole.write_bytes(pickle.dumps(found))
            whole.rename(path)
        return found


def front_rows(
    material: Material,
    devices: Sequence[str],
    budgets: int = 6,
    steps: int = 60,
    keep: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows: per budget the figures of all plans and the joint search's lead, then the means."""
    shelf = Shelf(None if keep is None else keep / material.path.stem)
    ready: dict[tuple[Any, ...], Prepared] = {}
    known: dict[tuple[Any, ...], np.ndarray] = {}
    for name in devices:
        device = npu.device(name)
        menu = tuple(m for m in menu_of(device) if "float32" not in m)
        if menu not in ready:
            ready[menu] = _prepared(material, menu, shelf)
        yield from _device_rows(material, ready[menu], device, menu, budgets, steps, known, shelf)


def _prepared(material: Material, menu: tuple[tuple[str, str], ...], shelf: Shelf) -> Prepared:
    graph, params, _ = import_onnx(material.path)
    graph, params = fold_bn(*cleanup(graph, params))
    base = plan(graph, target=material.target)
    open_plan = with_choices(base, graph, menu, target=material.target)
    named = _named(menu)
    batches = list(material.calibration)

    def rounding() -> Theta:
        theta = calibrate(
            session(graph, params), params, open_plan, batches,
            observer=sqnr(), weight_observer=exact_mse(),
        )  # fmt: skip
        return round_choices(graph, params, theta, open_plan, batches, steps=300, key=KEY)

    theta, spent = shelf.kept(f"rounding_{named}", rounding)
    traces, _ = shelf.kept(
        f"traces_{named}", lambda: _traces(material, graph, params, base, open_plan)
    )
    return Prepared(graph, params, open_plan, theta, traces, spent)


def _named(menu: Sequence[tuple[str, str]]) -> str:
    return "_".join("".join(pair) for pair in menu)


def _traces(
    material: Material, graph: Graph, params: Params, base: Plan, open_plan: Plan
) -> dict[str, float]:
    """HAWQ's score of every weight: the mean eigenvalue of the Hessian."""
    apply, batches = lower(graph), list(material.calibration)
    weights = [
        t for c in open_plan.choices.values() for t in c.tensors
        if t in params and base.specs[t].role == "weight"
    ]  # fmt: skip
    probe = {n: v[:8] for n, v in batches[0].items()}
    exact = apply(params, {}, probe)
    taught = {**probe, **{f"target:{n}": y for n, y in exact.items()}}
    inputs = graph.inputs

    def loss(own: Params, batch: Batch) -> Any:
        return material.divergence(apply(own, {}, {n: batch[n] for n in inputs}), batch)

    floats = {n: params[n] for n in weights}
    traces = hessian_traces(
        lambda own, batch: loss({**params, **own}, batch), floats, weights, taught,
        tolerance=0.1, most=24, key=KEY,
    )  # fmt: skip
    return {n: float(trace.value) / trace.elements for n, trace in traces.items()}


def _device_rows(
    material: Material,
    ready: Prepared,
    device: Any,
    menu: Sequence[tuple[str, str]],
    count: int,
    steps: int,
    known: dict[tuple[Any, ...], np.ndarray],
    shelf: Shelf,
) -> Iterator[dict[str, Any]]:
    work = npu.workload(ready.graph, ready.params)
    priced = prices(ready.open_plan, work, device)
    label = f"{material.path.stem} on {device.name}"
    low, high = (float(v[0]) for v in priced.range())
    yield _row(f"{label}: bits move latency by", high / low, "x", None, None, "slowest / fastest")
    data = _cut(material.calibration, material.search)
    problem = space(
        ready.graph, ready.params, ready.open_plan, ready.theta, priced, data,
        divergence=material.divergence, batch_size=min(8, material.search),
    )  # fmt: skip
    book = Ledger(problem, problem.params, problem.theta)
    named = _named(menu)

    def alone() -> dict[str, np.ndarray]:
        book.sensitivities(_told)
        return book.alone

    known_alone, first = shelf.kept(f"alone_{named}", alone)
    book.alone.update(known_alone)
    loss, cost = book.sensitivities(_told), priced.table[0]
    limits = _limits(loss, cost, count) + float(priced.constant[0])

    budgets = [[b] for b in limits[::-1]]

    def longer(n: int, before: list[Found]) -> tuple[list[Found], dict[tuple[int, ...], float]]:
        found = sweep(
            problem, budgets[:n], steps=steps, ledger=book, before=before, progress=_told, key=KEY
        )
        return [replace(one, params={}, theta={}) for one in found], book.known

    done: list[Found] = []
    took = 0.0
    for n in range(1, count + 1):
        name = f"front_{named}_{device.name}_{n}"
        (done, seen), own = shelf.kept(name, partial(longer, n, done))
        book.known.update(seen)
        took += own
    found = [list(one.assignment.values()) for one in done[::-1]]
    score = np.array([
        max((ready.traces[t] for t in choice.tensors if t in ready.traces), default=0.0)
        for choice in ready.open_plan.choices.values()
    ])  # fmt: skip
    place, judge = aligned(ready.open_plan, menu), _judge(material, problem, known)
    rows = np.arange(len(loss))[:, None]
    legal = place >= 0
    wide_loss = np.where(legal, loss[rows, place], np.inf)
    wide_cost = np.where(legal, cost[rows, place], np.inf)
    figures: dict[str, list[np.ndarray]] = {}
    for limit, one in zip(limits, found, strict=True):
        room = float(limit - priced.constant[0])
        same = uniform(wide_loss, wide_cost, room)
        plans = {
            "joint": np.array(one),
            "greedy": greedy(loss, cost, room),
            "HAWQ": ranked(loss, cost, room, score),
            "uniform": place[np.arange(len(loss)), same],
        }
        for kind, chosen in plans.items():
            figures.setdefault(kind, []).append(judge(chosen))
    yield from _compared(material, label, limits, figures, first + took + ready.seconds)


def _limits(loss: np.ndarray, cost: np.ndarray, count: int) -> np.ndarray:
    """Budgets evenly between the cheapest plan and the cheapest of the least-loss plans."""
    legal = np.isfinite(loss) & np.isfinite(cost)
    low = np.where(legal, cost, np.inf).min(1).sum()
    least = np.where(legal, loss, np.inf)
    high = cost[np.arange(len(loss)), least.argmin(1)].sum()
    return np.linspace(low, high, count + 2)[1:-1]


def _judge(
    material: Material, problem: Space, known: dict[tuple[Any, ...], np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """Answers of a plan on the evaluation data: one program for all plans, each run once."""
    apply, names = lower(problem.graph), problem.graph.inputs

    @jax.jit
    def run(params: Any, theta: Any, branches: Any, inputs: Any) -> Any:
        return apply(params, problem.trial.select(theta, branches), inputs)

    def judge(choice: np.ndarray) -> np.ndarray:
        branches = problem.trial.branches(choice)
        key = (tuple(problem.trial.tensors), tuple(branches.tolist()))
        if key not in known:
            parts = []
            for batch in material.evaluation:
                inputs = {n: jnp.asarray(batch[n]) for n in names}
                outputs = run(problem.params, problem.theta, branches, inputs)
                parts.append(material.answers(jax.device_get(outputs), batch))
            known[key] = np.concatenate(parts)
        return known[key]

    return judge


def paired(
    figure: Callable[[np.ndarray, np.ndarray], float],
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    draws: int = 2000,
) -> tuple[float, float, float]:
    """(mean difference, its standard error, p of "not better") over plans, samples resampled
    with replacement and the same ones for both sides (paired bootstrap)."""
    rng = np.random.default_rng(0)
    size = len(ours[0])

    def lead(index: np.ndarray) -> float:
        gaps = [figure(a, index) - figure(b, index) for a, b in zip(ours, theirs, strict=True)]
        return float(np.mean(gaps))

    drawn = np.array([lead(rng.integers(size, size=size)) for _ in range(draws)])
    return lead(np.arange(size)), float(drawn.std(ddof=1)), float((drawn <= 0).mean())


def _compared(
    material: Material,
    label: str,
    limits: np.ndarray,
    figures: dict[str, list[np.ndarray]],
    seconds: float,
) -> Iterator[dict[str, Any]]:
    every = np.arange(len(figures["joint"][0]))
    others = [kind for kind in figures if kind != "joint"]
    best: list[np.ndarray] = []
    for i, limit in enumerate(limits):
        value = {kind: material.figure(figures[kind][i], every) for kind in figures}
        top = max(others, key=lambda kind: value[kind])
        best.append(figures[top][i])
        lead, error, _ = paired(material.figure, figures["joint"][i : i + 1], best[-1:], 500)
        detail = ", ".join(f"{kind} {v:.2f}" for kind, v in value.items())
        yield _row(
            f"{label}, {1e3 * limit:.4g} ms: joint - {top}", lead, "points",
            f">= {-error:.2f}", lead >= -error, detail,
        )  # fmt: skip
    for kind, theirs in [*((k, figures[k]) for k in others), ("best of them", best)]:
        lead, error, p = paired(material.figure, figures["joint"], theirs)
        yield _row(
            f"{label}: mean lead over {kind}", lead, "points", "p < 0.05", p < 0.05,
            f"+- {error:.2f}, p {p:.4f}",
        )  # fmt: skip
    yield _row(f"{label}: ranges, rounding, search", seconds, "s", None, None)


def _row(name, figure, unit, bar, holds, detail="") -> dict[str, Any]:
    return {
        "name": name, "figure": float(figure), "unit": unit, "bar": bar,
        "holds": None if holds is None else bool(holds), "detail": detail,
    }  # fmt: skip


def _cut(batches: Sequence[Batch], count: int) -> list[dict[str, np.ndarray]]:
    joined = {n: np.concatenate([b[n] for b in batches])[:count] for n in batches[0]}
    return [joined]


def _told(what: str, done: int, total: int) -> None:
    """Progress on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {what} {done} of {total}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- the networks


def photos(data: Path, stem: str, prepare: str, search: int) -> Material:
    """Classifiers of photos by top-1."""
    images = imagenet(data, prepare)
    return Material(
        model_path(data, stem), images.calibration(25), search, images.evaluation(50),
        lambda outputs, batch: next(iter(outputs.values())).argmax(-1) == batch["labels"],
        lambda right, chosen: 100 * float(right[chosen].mean()), kl,
    )  # fmt: skip


def sentences(data: Path, search: int, pairs: int = 400) -> Material:
    """MiniLM by Spearman's correlation of cosine similarity with the score of STS-B pairs."""
    with np.load(data / "stsb_tokens.npz") as file:
        arrays = dict(file)

    def batch(split: str, begin: int, end: int) -> Batch:
        ids, mask = (
            np.concatenate([arrays[f"{split}_{kind}_{side}"][begin:end] for side in "ab"])
            for kind in ("ids", "mask")
        )
        return {
            "input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64),
            "token_type_ids": np.zeros(ids.shape, np.int64),
        }  # fmt: skip

    def evaluation() -> list[Batch]:
        found = []
        for begin in range(0, pairs, 50):
            scores = arrays["eval_score"][begin : begin + 50]
            found.append({**batch("eval", begin, begin + 50), "labels": scores})
        return found

    def answers(outputs: Mapping[str, Any], batch: Batch) -> np.ndarray:
        first, second = np.split(outputs["sentence_embedding"], 2)
        return np.stack([(first * second).sum(-1), batch["labels"]], axis=1)

    def spearman(rows: np.ndarray, chosen: np.ndarray) -> float:
        a, b = (rankdata(rows[chosen, k]) for k in range(2))
        return 100 * float(np.corrcoef(a, b)[0, 1])

    def embedding(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
        return output_mse({"sentence_embedding": outputs["sentence_embedding"]}, batch)

    calibration = [batch("calib", b, b + 16) for b in range(0, 64, 16)]
    return Material(
        model_path(data, "minilm_l6_stsb"), calibration, search, evaluation(), answers, spearman,
        embedding,
    )  # fmt: skip


def _mobilenet(data: Path, keep: Path | None = None) -> Iterator[dict[str, Any]]:
    material = photos(data, "imagenet_mobilenetv2_10", "unit", 16)
    return front_rows(material, ("snapdragon-8-gen-3", "snapdragon-8-gen-3-guide"), keep=keep)


def _minilm(data: Path, keep: Path | None = None) -> Iterator[dict[str, Any]]:
    return front_rows(sentences(data, 16), ("snapdragon-8-gen-3",), keep=keep)


CASES: Mapping[str, Callable[[Path, Path | None], Iterator[dict[str, Any]]]] = {
    "mobilenet": _mobilenet,
    "minilm": _minilm,
}
