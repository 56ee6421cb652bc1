"""Reconstruction from samples, with what follows a layer inside: AdaRound, BRECQ, QDrop."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from jqnt.affine import rectified_sigmoid
from jqnt.graph.ir import Graph
from jqnt.graph.shapes import infer_shapes
from jqnt.learn import walk
from jqnt.learn.blocks import Span, blocks_of, layers_of
from jqnt.learn.fit import Progress, fit
from jqnt.learn.importance import importance
from jqnt.learn.journal import Entry, Journal
from jqnt.learn.piece import Piece, compiled, piece_of
from jqnt.learn.reads import reads
from jqnt.learn.reconstruct import learnable, value_of
from jqnt.learn.rounding import closed, kept, opened
from jqnt.learn.rows import regularizer
from jqnt.learn.source import Draw, Stream
from jqnt.plan import Options, Plan, Theta, bind
from jqnt.quantizers import Dropped, SoftRound
from jqnt.types import Params

__all__ = ["BlockLoss", "SpanError", "reconstruct_samples"]

MEMORY = 2**30
"""Bytes of activations that are kept between pieces."""
BATCH = 32
RATE = 2e-2
SCALE_RATE = 1e-3
STRENGTH = 0.3
CHUNK = 50
"""Samples that a block is run on at a time where all are."""


@dataclass(frozen=True)
class SpanError:
    """Of one piece: the mean squared error of its output over the power of the float output, both
    weighted as in the loss, on all calibration samples, with hard rounding, before and after."""

    weights: tuple[str, ...]
    end: str
    before: float
    after: float


class Sampled(NamedTuple):
    """The result, and the errors of the pieces."""

    theta: Theta
    spans: tuple[SpanError, ...]


def reconstruct_samples(
    graph: Graph,
    params: Params,
    theta: Theta,
    plan: Plan,
    batches: Stream,
    teacher: Params,
    *,
    unit: Literal["layer", "block"] = "block",
    drop: float = 0.5,
    scales: bool = True,
    fisher: bool = False,
    steps: int = 1000,
    journal: Journal | None = None,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> Sampled:
    """Learns the rounding of all weights of a piece of the network at once, piece by piece.

    min over logits (and, with `scales`, the scales of activations inside) of
    E ||f(x) - f~(x~)||^2 + AdaRound's regularizer, on random batches of 32: f is a layer with
    its activation function ("layer": AdaRound, Nagel et al. 2020, eq. 25) or a residual block
    ("block": BRECQ, Li et al. 2021). With probability `drop` an element of the input, and of
    each activation inside, is the float one (QDrop, Wei et al. 2022, eq. 9-11). With `fisher` the
    elements of f(x) count as much as the network's output minds their errors (`importance`), as in
    BRECQ, and alike without. The float network has the params `teacher`. Where `theta` has learned
    rounding already, training starts from it. With a `journal` what was found before an
    interruption is not computed again. A piece that ends worse than it began, on all samples with
    hard rounding, stays as it was.

    Raises what `reconstruct` does.
    """
    weights = learnable(graph, theta, plan)
    exact = {name: jnp.asarray(value) for name, value in teacher.items()}
    lossy = {name: jnp.asarray(value) for name, value in params.items()}
    theta = dict(theta)
    front = walk.start(graph, walk.Networks(exact, lossy, bind(theta, plan)), batches)
    shapes = infer_shapes(graph, params, inputs=front.pairs[0].exact)
    found = reads(graph, shapes, weights)
    spans = layers_of(graph, found) if unit == "layer" else blocks_of(graph, found)
    weighed: dict[str, Any] = {}
    if fisher:
        data = batches if isinstance(batches, Iterable) else batches()
        own = jax.random.fold_in(key, len(spans))  # no piece has this one
        weighed = importance(graph, exact, data, [span.end for span in spans], key=own)
    errors = []
    for i, span in enumerate(spans):
        networks = walk.Networks(exact, lossy, bind(theta, plan))
        wanted = [n for s in spans[i:] for n in (*s.starts, s.end)]
        names = walk.frontier(graph, span.position, wanted)
        if walk.fits(shapes, names, len(front.pairs), MEMORY):
            front = walk.advance(graph, front, names, networks)
        entry = None if journal is None else journal.recall(i, theta)
        if entry is None:
            problem = _problem(graph, span, plan, lossy, theta)
            data = _samples(graph, front, span, problem.block, networks)
            own = jax.random.fold_in(key, i)
            alike = jnp.ones((1,) * data["target"].ndim)
            weights = jnp.asarray(weighed.get(span.end, alike))
            learned, error = _learn(problem, data, weights, drop, scales, steps, own)
            entry = Entry(learned, {}, error)
            if journal is not None:
                journal.record(i, entry)
        theta.update(entry.theta)
        before, after = entry.errors
        errors.append(SpanError(span.weights, span.end, before, after))
        if progress is not None:
            progress(i + 1, len(spans), {"before": before, "after": after})
    return Sampled(theta, tuple(errors))


@dataclass(frozen=True)
class BlockLoss:
    """The loss of a block; equal for blocks of equal structure, which share a program.

    `groups` maps each quantized tensor inside to the entry of theta that holds its quantizer.
    """

    block: Piece
    groups: tuple[tuple[str, str], ...]

    def __call__(
        self, value: Any, batch: Any, *, step: Any, key: Any
    ) -> tuple[Any, dict[str, Any]]:
        """norm * mean <importance, (f(x) - f~(x~))^2> + strength * regularizer (BRECQ, eq. 10)."""
        settings, theta = value["settings"], value["theta"]
        keys = iter(jax.random.split(key, len(self.block.inputs) + len(self.groups)))
        inputs = {
            name: _mixed(
                batch[f"exact:{name}"], batch[f"lossy:{name}"], settings["drop"], next(keys)
            )
            for name in self.block.inputs
        }
        qparams = {}
        for (tensor, group), k in zip(self.groups, keys, strict=True):
            chosen = theta[group]
            soft = isinstance(chosen, SoftRound)
            qparams[tensor] = chosen if soft else Dropped(chosen, settings["drop"], k)
        y = compiled(self.block)(value["params"], qparams, inputs)[self.block.end]
        error = jnp.sum(value["importance"] * (y - batch["target"]) ** 2) / y.shape[0]
        progress = step / settings["steps"]
        logits = [q.logit for q in theta.values() if isinstance(q, SoftRound)]
        binary = sum(regularizer(rectified_sigmoid(v), progress) for v in logits)
        return settings["norm"] * error + settings["strength"] * binary, {"error": error}


class _Problem(NamedTuple):
    """A block with its parameters and quantizers, by the block's names."""

    block: Piece
    groups: tuple[tuple[str, str], ...]
    params: dict[str, Any]
    theta: dict[str, Any]
    weights: dict[str, Any]
    """Group of a weight to learn -> its float value."""
    scales: tuple[str, ...]
    """Groups of activations that are quantized in this block alone."""
    outer: dict[str, str]
    """Group -> its name in the whole theta."""


def _problem(graph: Graph, span: Span, plan: Plan, params: Params, theta: Theta) -> _Problem:
    block = piece_of(graph, span.starts, (span.end,))
    ordinal = {name: short for name, short in block.names.items() if name not in span.starts}
    groups, outer = [], {}
    for tensor, short in ordinal.items():
        leader = plan.tied.get(tensor, tensor)
        if leader in theta and not isinstance(theta[leader], Options):
            group = block.names.get(leader, f"outer {leader}")
            groups.append((short, group))
            outer[group] = leader
    members = {leader: {leader} for leader in outer.values()}
    for tensor, leader in plan.tied.items():
        if leader in members:
            members[leader].add(tensor)
    scales = [g for g, leader in outer.items() if members[leader] <= set(ordinal)]
    weights = {block.names[w]: value_of(graph, params, w) for w in span.weights}
    return _Problem(
        block,
        tuple(groups),
        {short: params[name] for name, short in ordinal.items() if name in params},
        {group: theta[leader] for group, leader in outer.items()},
        weights,
        tuple(g for g in scales if plan.specs[outer[g]].role == "activation"),
        outer,
    )


def _samples(
    graph: Graph, front: walk.Front, span: Span, block: Piece, networks: walk.Networks
) -> dict[str, Any]:
    """Inputs of the block in both networks, and its output in the float one; all samples."""
    wanted = tuple(dict.fromkeys((*span.starts, span.end)))
    pairs = list(walk.look(graph, front, wanted, networks))
    data = {"target": jnp.concatenate([pair.exact[span.end] for pair in pairs])}
    for name in span.starts:
        for kind in ("exact", "lossy"):
            parts = [getattr(pair, kind)[name] for pair in pairs]
            data[f"{kind}:{block.names[name]}"] = jnp.concatenate(parts)
    return data


def _learn(
    problem: _Problem,
    data: dict[str, Any],
    weights: Any,
    drop: float,
    scales: bool,
    steps: int,
    key: PRNGKeyArray,
) -> tuple[Theta, tuple[float, float]]:
    """What changes in theta, and the relative error before and after."""
    loss = BlockLoss(problem.block, problem.groups)
    settings = {"drop": 0.0, "steps": float(steps), "strength": 0.0, "norm": 1.0}
    value = {
        "params": problem.params, "theta": problem.theta, "settings": settings,
        "importance": weights,
    }  # fmt: skip
    before = _error(loss, value, data)
    soft = {w: opened(problem.theta[w], problem.weights[w]) for w in problem.weights}
    count = sum(q.logit.size for q in soft.values())
    # In these units an independent error of each weight is what it is in `learn_rounding`.
    norm = count / 12 / max(before, jnp.finfo(jnp.float32).tiny)
    trained = problem.scales if scales else ()
    found = fit(
        loss,
        {
            **value,
            "theta": {**problem.theta, **soft},
            "settings": {**settings, "drop": drop, "strength": STRENGTH, "norm": norm},
        },
        _optimizer(steps),
        Draw(data, min(BATCH, len(data["target"]))),
        steps=steps,
        trainable=functools.partial(_trains, weights=tuple(soft), scales=trained),
        project=_positive,
        key=key,
    ).theta["theta"]
    hard = {w: closed(found[w]) for w in soft}
    learned = {**hard, **{g: found[g] for g in trained}}
    after = _error(loss, {**value, "theta": {**problem.theta, **learned}}, data)
    if not after < before:
        learned, after = {w: kept(problem.theta[w], problem.weights[w]) for w in soft}, before
    power = float(jnp.sum(weights * data["target"] ** 2)) / len(data["target"])
    power = max(power, float(jnp.finfo(jnp.float32).tiny))
    return {problem.outer[g]: q for g, q in learned.items()}, (before / power, after / power)


def _error(loss: BlockLoss, value: Any, data: dict[str, Any]) -> float:
    """The mean over all samples of ||f(x) - f~(x~)||^2, without drop."""
    count = len(data["target"])
    size = next(n for n in range(min(CHUNK, count), 0, -1) if count % n == 0)
    size = size if size > CHUNK // 4 else min(CHUNK, count)
    total = 0.0
    for i in range(0, count, size):
        batch = {name: x[i : i + size] for name, x in data.items()}
        total += float(_evaluate(loss, value, batch)) * len(batch["target"])
    return total / count


@functools.partial(jax.jit, static_argnames=("loss",))
def _evaluate(loss: BlockLoss, value: Any, batch: Any) -> Any:
    return loss(value, batch, step=0, key=jax.random.key(0))[1]["error"]


def _mixed(exact: Any, lossy: Any, probability: Any, key: PRNGKeyArray) -> Any:
    """Each element is the float one with this probability; integers are the same anyway."""
    if not jnp.issubdtype(lossy.dtype, jnp.floating):
        return lossy
    return jnp.where(jax.random.uniform(key, lossy.shape) < probability, exact, lossy)


def _trains(path: Any, leaf: Any, weights: tuple[str, ...], scales: tuple[str, ...]) -> bool:
    keys = [getattr(k, "key", getattr(k, "name", None)) for k in path]
    if keys[0] != "theta":
        return False
    return (keys[1] in weights and keys[-1] == "logit") or (
        keys[1] in scales and keys[-1] == "scale"
    )


@functools.cache
def _optimizer(steps: int) -> optax.GradientTransformation:
    """Adam on logits; on scales, steps in units of their size, fading along a cosine."""
    scale = optax.chain(
        optax.scale_by_adam(),
        optax.scale_by_param_block_rms(),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(SCALE_RATE, steps)),
    )

    def labels(value: Any) -> Any:
        def label(path: Any, leaf: Any) -> str:
            return str(getattr(path[-1], "name", None))

        return jax.tree_util.tree_map_with_path(label, value)

    return optax.multi_transform({"logit": optax.adam(RATE), "scale": scale}, labels)


def _positive(value: Any, aux: Any, *, step: Any) -> Any:
    """A step may not turn a scale over."""
    tiny = jnp.finfo(jnp.float32).tiny

    def kept(path: Any, leaf: Any) -> Any:
        is_scale = getattr(path[-1], "name", None) == "scale"
        return jnp.maximum(leaf, tiny) if is_scale else leaf

    return {**value, "theta": jax.tree_util.tree_map_with_path(kept, value["theta"])}
