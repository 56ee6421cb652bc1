"""Learned rounding for every format of a menu: once per weight and width, whatever is chosen."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jqnt.errors import ConfigError
from jqnt.graph.ir import Graph
from jqnt.graph.shapes import infer_shapes
from jqnt.learn import walk
from jqnt.learn.fit import Progress
from jqnt.learn.gram import Moments, accumulate, zero_moments
from jqnt.learn.layer import matrix
from jqnt.learn.reads import reads
from jqnt.learn.reconstruct import value_of
from jqnt.learn.rounding import learn_rounding
from jqnt.learn.source import Stream
from jqnt.plan import Options, Plan, Theta
from jqnt.quantizers import Affine
from jqnt.types import Params

__all__ = ["round_choices"]


def round_choices(
    graph: Graph,
    params: Params,
    theta: Theta,
    plan: Plan,
    batches: Stream,
    *,
    most_bits: int = 8,
    steps: int = 500,
    memory: int = 2**30,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> Theta:
    """theta in which each choice's weights have a `SoftRound` in every integer format.

    AdaRound (Nagel et al. 2020) per layer and width against the float network's inputs, so that
    the second moments of a layer serve all its widths, and one rounding serves every plan that
    takes that width. A search on the result sees the loss that learned rounding leaves, and its
    plan comes out rounded. Formats of more than `most_bits` keep rounding to nearest.

    Raises ConfigError if the plan has no choices, DataError for batches that are empty or lack
    an input.
    """
    if not plan.choices:
        raise ConfigError("the plan has no choices: adaround learns the rounding of one plan")
    menus = _menus(theta, plan, most_bits)
    exact = {name: jnp.asarray(value) for name, value in params.items()}
    networks = walk.Networks(exact, exact, {})
    front = walk.start(graph, networks, batches)
    shapes = infer_shapes(graph, params, inputs=front.pairs[0].exact)
    found = reads(graph, shapes, tuple(menus))
    last = {read.weight: i for i, read in enumerate(found)}
    sums: dict[str, Moments] = {}
    learned = {name: dict(theta[name].branches) for name in plan.choices}
    done = 0
    for i, read in enumerate(found):
        names = walk.frontier(graph, read.position, [r.data for r in found[i:]])
        if walk.fits(shapes, names, len(front.pairs), memory):
            front = walk.advance(graph, front, names, networks)
        w = value_of(graph, exact, read.weight)
        total = sums.pop(read.weight, None) or zero_moments(*matrix(read.layer, w).shape)
        for pair in walk.look(graph, front, (read.data,), networks):
            total = accumulate(read.layer, total, w, pair.exact[read.data], pair.lossy[read.data])
        if i < last[read.weight]:
            sums[read.weight] = total
            continue
        owner, places = menus[read.weight]
        own = jax.random.fold_in(key, done)
        branches = list(learned[owner][read.weight])
        for k in places:
            step_key = jax.random.fold_in(own, k)
            branches[k] = learn_rounding(
                read.layer, total, w, branches[k], steps=steps, key=step_key
            ).quantizer
        learned[owner][read.weight] = tuple(branches)
        done += 1
        if progress is not None:
            progress(done, len(last), {})
    return {
        name: replace(group, branches=learned[name]) if name in learned else group
        for name, group in theta.items()
    }


def _menus(theta: Theta, plan: Plan, most_bits: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Weight of a choice -> (the choice, which of its branches are grids of few enough bits)."""
    shared = {*plan.tied, *plan.tied.values()}
    menus = {}
    for name, choice in plan.choices.items():
        group: Options = theta[name]
        for tensor in choice.tensors:
            if plan.specs[tensor].role != "weight" or tensor in shared:
                continue
            places = tuple(
                k
                for k, branch in enumerate(group.branches[tensor])
                if isinstance(branch, Affine) and float(jnp.max(branch.bits)) <= most_bits
            )
            if places:
                menus[tensor] = (name, places)
    return menus
