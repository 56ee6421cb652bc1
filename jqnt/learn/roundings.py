"""The ways to round the weights of a network, by name: from nearest to whole blocks."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PRNGKeyArray

from jqnt.errors import ConfigError, nearest
from jqnt.graph.ir import Graph
from jqnt.learn.best_scale import learn_scale_and_rounding
from jqnt.learn.fit import Progress
from jqnt.learn.gptq import gptq
from jqnt.learn.journal import Journal, fingerprint
from jqnt.learn.netwise import netwise
from jqnt.learn.output_error import least_output_error
from jqnt.learn.reconstruct import Method, reconstruct
from jqnt.learn.rounding import learn_rounding
from jqnt.learn.sampled import reconstruct_samples
from jqnt.learn.straight import adaquant, flexround
from jqnt.plan import Plan, Theta
from jqnt.types import Params

__all__ = ["ROUNDINGS", "RoundedNetwork", "Rounding", "check_rounding", "round_weights"]

Batches = Sequence[Mapping[str, Any]]


class RoundedNetwork(NamedTuple):
    """The params and the theta to `bind` and `freeze`."""

    params: Params
    theta: Theta


@dataclass(frozen=True)
class Job:
    """A network whose weights are to be rounded, and how long that may take."""

    graph: Graph
    params: Params
    theta: Theta
    plan: Plan
    batches: Batches
    steps: int
    progress: Progress | None
    key: PRNGKeyArray


@dataclass(frozen=True)
class Rounding:
    """A way of rounding: its name in tables, and `run(job, journals) -> RoundedNetwork`.

    `journals(stage)` is the journal of one of its stages, or None.
    """

    title: str
    run: Callable[[Job, Callable[[str], Journal | None]], RoundedNetwork]


def round_weights(
    graph: Graph,
    params: Params,
    theta: Theta,
    plan: Plan,
    batches: Batches,
    method: str,
    *,
    steps: int = 500,
    folder: Path | None = None,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> RoundedNetwork:
    """Rounds every weight on an integer grid by one of the `ROUNDINGS`, under any plan.

    `params` are those of the float network, `theta` the calibrated ranges. `steps` are those of
    a layer or of a block, whatever the method moves at once. With a `folder` what
    is found is kept there: called again with the same arguments after an interruption, it goes
    on from there and ends with the same bits.

    Raises ConfigError for a method that does not exist, DataError for the folder of another run,
    and what the methods raise.
    """
    check_rounding(method)
    job = Job(graph, params, theta, plan, batches, steps, progress, key)
    opened: list[Journal] = []
    identity = ""
    if folder is not None:
        data = [{name: batch[name] for name in graph.inputs} for batch in batches]
        identity = fingerprint(params, theta, repr(plan), data, method, steps, key)

    def journals(stage: str) -> Journal | None:
        if folder is None:
            return None
        opened.append(Journal(folder / stage, identity))
        return opened[-1]

    try:
        return ROUNDINGS[method].run(job, journals)
    finally:
        for journal in opened:
            journal.close()


def check_rounding(method: str) -> None:
    """Raises ConfigError for a method that does not exist."""
    if method not in ROUNDINGS:
        raise ConfigError(
            f"no rounding {method!r}; there are {', '.join(ROUNDINGS)}{nearest(method, ROUNDINGS)}"
        )


def _nearest(job: Job, journals: Any) -> RoundedNetwork:
    return RoundedNetwork(job.params, job.theta)


def _layers(method: Callable[[Job], Method], bias: bool, job: Job, journals: Any) -> RoundedNetwork:
    found = reconstruct(
        job.graph, job.params, job.theta, job.plan, job.batches, method(job), bias=bias,
        journal=journals("layers"), progress=job.progress, key=job.key,
    )  # fmt: skip
    return RoundedNetwork(found.params, found.theta)


def _adaround(job: Job) -> Method:
    return functools.partial(learn_rounding, steps=job.steps)


def _with_scales(job: Job) -> Method:
    return functools.partial(learn_scale_and_rounding, steps=job.steps)


def _blocks(drop: float, fisher: bool, job: Job, journals: Any) -> RoundedNetwork:
    """Blocks start from what layers found."""
    first = _layers(_with_scales, True, job, journals)
    found = reconstruct_samples(
        job.graph, first.params, first.theta, job.plan, job.batches, job.params, drop=drop,
        fisher=fisher, steps=job.steps, journal=journals("blocks"), progress=job.progress,
        key=job.key,
    )  # fmt: skip
    return RoundedNetwork(first.params, found.theta)


def _netwise(job: Job, journals: Any) -> RoundedNetwork:
    """The whole network starts from what layers found."""
    first = _layers(_with_scales, True, job, journals)
    theta = netwise(
        job.graph, first.params, first.theta, job.plan, job.batches, job.params,
        steps=job.steps, progress=job.progress, key=job.key,
    )  # fmt: skip
    return RoundedNetwork(first.params, theta)


ROUNDINGS: dict[str, Rounding] = {
    "nearest": Rounding("nearest", _nearest),
    "seqmse": Rounding(
        "SeqMSE", functools.partial(_layers, lambda job: least_output_error(), False)
    ),
    "gptq": Rounding(
        "GPTQ",
        functools.partial(_layers, lambda job: functools.partial(gptq, asymmetric=True), False),
    ),
    "adaquant": Rounding(
        "AdaQuant",
        functools.partial(_layers, lambda job: functools.partial(adaquant, steps=job.steps), True),
    ),
    "flexround": Rounding(
        "FlexRound",
        functools.partial(
            _layers, lambda job: functools.partial(flexround, steps=job.steps), False
        ),
    ),
    "adaround": Rounding("AdaRound", functools.partial(_layers, _adaround, False)),
    "adaround-bias": Rounding("AdaRound with biases", functools.partial(_layers, _adaround, True)),
    "adaround-scales": Rounding(
        "AdaRound with biases and scales", functools.partial(_layers, _with_scales, True)
    ),
    "brecq": Rounding("BRECQ", functools.partial(_blocks, 0.0, True)),
    "qdrop": Rounding("QDrop", functools.partial(_blocks, 0.5, False)),
    "netwise": Rounding("the network at once", _netwise),
}
"""Layer by layer, but for the last three: block by block, and all at once."""
