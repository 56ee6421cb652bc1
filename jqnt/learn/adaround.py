"""AdaRound for a whole network: every weight's rounding learned, under any plan."""

import functools

from jaxtyping import PRNGKeyArray

from jqnt.graph.ir import Graph
from jqnt.learn.fit import Progress
from jqnt.learn.reconstruct import reconstruct
from jqnt.learn.rounding import learn_rounding
from jqnt.learn.source import Stream
from jqnt.plan import Plan, Theta
from jqnt.types import Params

__all__ = ["adaround"]


def adaround(
    graph: Graph,
    params: Params,
    theta: Theta,
    plan: Plan,
    batches: Stream,
    *,
    steps: int = 500,
    progress: Progress | None = None,
    key: PRNGKeyArray,
) -> Theta:
    """theta with a `SoftRound` at every weight on an integer grid, ready for `bind` and `freeze`.

    Adaptive rounding (Nagel et al. 2020) with asymmetric inputs, one layer after the other, each
    under the exact quadratic error of all calibration samples. See `reconstruct` for its errors,
    for biases, and for the errors of single layers.
    """
    method = functools.partial(learn_rounding, steps=steps)
    return reconstruct(
        graph, params, theta, plan, batches, method, progress=progress, key=key
    ).theta
