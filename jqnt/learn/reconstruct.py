"""Layer-wise reconstruction: each weight rounded for what the quantized network really sees."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from jqnt.errors import UnsupportedError
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.graph.shapes import infer_shapes
from jqnt.learn import walk
from jqnt.learn.fit import Progress
from jqnt.learn.gram import Moments, accumulate, best_bias, centred, quadratic, zero_moments
from jqnt.learn.journal import Entry, Journal
from jqnt.learn.layer import Layer, matrix
from jqnt.learn.reads import Read, reads
from jqnt.learn.rounding import Rounded
from jqnt.learn.source import Stream
from jqnt.plan import Options, Plan, Theta, bind
from jqnt.quantizers import Affine, SoftRound
from jqnt.types import Params

__all__ = ["LayerError", "Method", "Reconstruction", "learnable", "reconstruct", "value_of"]

Method = Callable[..., Rounded]
"""`method(layer, moments, w, quantizer, *, key) -> Rounded`: a better quantizer for the weight w,
and the weight that it quantizes."""


@dataclass(frozen=True)
class LayerError:
    """Of one weight: sum ||x W - x~ W~||^2 / sum ||x W||^2, over all calibration samples, with the
    weight as it was quantized before and as it is now. Errors of earlier layers are in x~."""

    weight: str
    nodes: tuple[str, ...]
    before: float
    after: float


class Reconstruction(NamedTuple):
    """The result: `theta` has the quantizers of weights, `params` the weights and biases to use."""

    params: Params
    theta: Theta
    layers: tuple[LayerError, ...]


def reconstruct(
    graph: Graph,
    params: Params,
    theta: Theta,
    plan: Plan,
    batches: Stream,
    method: Method,
    *,
    bias: bool = False,
    memory: int = 2**30,
    journal: Journal | None = None,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> Reconstruction:
    """Improves the quantizer of every weight on an integer grid, in the order of the graph.

    A layer's inputs are those of the quantized network so far (activations and other layers'
    formats as `theta` and `plan` have them), its target the float network's output: errors of
    earlier layers are made up for. `bias` also corrects the bias of layers that have one of
    their own. Activations are kept between layers where all batches of both networks fit into
    `memory` bytes, and computed again from the last kept ones elsewhere. With a `journal` what was
    found before an interruption is not computed again.

    Raises UnsupportedError for weights whose format is still being searched, or tied, and
    DataError for batches that are empty or lack an input.
    """
    weights = learnable(graph, theta, plan)
    exact = {name: jnp.asarray(value) for name, value in params.items()}
    theta, lossy, changed = dict(theta), dict(exact), dict(params)
    front = walk.start(graph, walk.Networks(exact, lossy, bind(theta, plan)), batches)
    shapes = infer_shapes(graph, params, inputs=front.pairs[0].exact)
    found = reads(graph, shapes, weights)
    last = {read.weight: i for i, read in enumerate(found)}
    sums: dict[str, Moments] = {}
    layers: list[LayerError] = []
    for i, read in enumerate(found):
        networks = walk.Networks(exact, lossy, bind(theta, plan))
        names = walk.frontier(graph, read.position, [r.data for r in found[i:]])
        if walk.fits(shapes, names, len(front.pairs), memory):
            front = walk.advance(graph, front, names, networks)
        entry = None if journal is None else journal.recall(last[read.weight], theta)
        w = value_of(graph, exact, read.weight)
        if entry is None:
            total = sums.pop(read.weight, None) or zero_moments(*matrix(read.layer, w).shape)
            for pair in walk.look(graph, front, (read.data,), networks):
                given = pair.exact[read.data], pair.lossy[read.data]
                total = accumulate(read.layer, total, w, *given)
            sums[read.weight] = total
        if i < last[read.weight]:
            continue
        readers = [r for r in found if r.weight == read.weight]
        if entry is None:
            own = bias and len(readers) == 1
            layer_key = jax.random.fold_in(key, len(layers))
            total = jax.tree.map(np.asarray, sums.pop(read.weight))
            entry = _solved(read, total, w, theta, lossy, method, own, layer_key)
            if journal is not None:
                journal.record(i, entry)
        theta.update(entry.theta)
        for name, value in entry.params.items():
            _set(lossy, changed, name, value)
        before, after = entry.errors
        layers.append(LayerError(read.weight, tuple(r.node.name for r in readers), before, after))
        if progress is not None:
            progress(len(layers), len(last), {"before": before, "after": after})
    return Reconstruction(changed, theta, tuple(layers))


def _solved(
    read: Read,
    total: Moments,
    w: Any,
    theta: Theta,
    lossy: Params,
    method: Method,
    bias: bool,
    key: PRNGKeyArray,
) -> Entry:
    """What the method makes of one layer, and of its bias."""
    own = read.bias if bias else None
    aim = total if own is None else centred(total)
    quantizer = _affine(theta[read.weight])
    better, base = method(read.layer, aim, w, quantizer, key=key)
    old, new = _changes(read.layer.form, quantizer, better, base, w)
    params = {} if base is w else {read.weight: base}
    if own is not None:
        shift = best_bias(total, new).reshape(-1) / read.beta
        params[own] = np.asarray(lossy[own]) + shift
    errors = _relative(total, old), _relative(aim, new)
    return Entry({read.weight: better}, params, errors)


def learnable(graph: Graph, theta: Theta, plan: Plan) -> tuple[str, ...]:
    """The weights on an integer grid, whose rounding is free to choose.

    Raises UnsupportedError for weights inside a choice, and for those that share a quantizer.
    """
    names = []
    shared = {*plan.tied, *plan.tied.values()}
    for name, group in theta.items():
        if isinstance(group, Options):
            tensors = plan.choices[name].tensors
            weights = [t for t in tensors if t in plan.specs and plan.specs[t].role == "weight"]
            if weights:
                raise UnsupportedError(
                    f"the format of weight {weights[0]!r} is still being searched; decide choice "
                    f"{name!r} before its rounding is learned"
                )
            continue
        if plan.specs[name].role != "weight" or not isinstance(group, Affine | SoftRound):
            continue
        if name in shared:
            raise UnsupportedError(
                f"weight {name!r} shares its quantizer with another tensor, so its rounding "
                f"cannot be learned; give each its own"
            )
        names.append(graph.check(name))
    return tuple(names)


def value_of(graph: Graph, params: Params, weight: str) -> Any:
    """The float value of a weight: a parameter, or computed from parameters."""
    if weight in params:
        return params[weight]
    return lower(graph, (), (weight,))(params, {}, {})[weight]


def _affine(quantizer: Affine | SoftRound) -> Affine:
    return quantizer.affine if isinstance(quantizer, SoftRound) else quantizer


def _set(lossy: Params, changed: Params, name: str, value: Any) -> None:
    """A parameter of the quantized network becomes another; it must be one."""
    if name not in changed:
        raise UnsupportedError(
            f"weight {name!r} is computed from parameters, so it cannot be replaced; run "
            f"transforms.cleanup first"
        )
    lossy[name] = value
    changed[name] = jax.device_get(value)


def _changes(
    layer: Layer, old: Affine, new: Affine | SoftRound, base: Any, w: Any
) -> tuple[np.ndarray, np.ndarray]:
    """W~ - W as matrices: as it was quantized before, and what `new` makes of `base`."""
    return jax.device_get(_deltas(layer, old, new, base, w))


@functools.partial(jax.jit, static_argnames=("layer",))
def _deltas(layer: Layer, old: Any, new: Any, base: Any, w: Any) -> tuple[Any, Any]:
    return matrix(layer, old(w) - w), matrix(layer, new(base) - w)


def _relative(moments: Moments, delta: np.ndarray) -> float:
    """The error over the power of the float output."""
    error, signal = quadratic(moments, delta).sum(), moments.signal.sum()
    return float(error / max(signal, np.finfo(np.float32).tiny))
