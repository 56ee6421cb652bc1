"""What a network is judged by: metrics of its outputs on labelled data, or against references."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jqnt.errors import ConfigError, DataError, nearest

__all__ = [
    "METRICS",
    "Evaluate",
    "Metric",
    "cosine",
    "evaluator",
    "metric_named",
    "mse",
    "top1",
    "user_metric",
]

Outputs = Mapping[str, np.ndarray]
Run = Callable[[dict[str, Any]], Mapping[str, Any]]
"""`run(inputs) -> {output name -> array}`: a network under judgement, whatever computes it."""

Evaluate = Callable[[Run], float]
"""`evaluate(run) -> figure`, of which more is always better (an error counts negatively)."""


class Metric(NamedTuple):
    """`score(outputs, reference, labels)` over a whole data set, in `unit`.

    `reference` holds the float network's outputs and `labels` the right answers, each None
    where `needs_reference` or `needs_labels` is off and none are given. `sign` is -1 for an
    error, of which less is better.
    """

    name: str
    score: Callable[[Outputs, Outputs | None, np.ndarray | None], float]
    sign: int = 1
    unit: str = ""
    needs_labels: bool = False
    needs_reference: bool = False


def top1(outputs: Outputs, reference: Outputs | None, labels: np.ndarray | None) -> float:
    """Percent of samples whose largest value of the first output stands at the label."""
    logits = next(iter(outputs.values()))
    if labels is None:
        raise DataError("top1 needs labels: an array 'labels' beside the inputs")
    if logits.ndim < 2 or labels.shape != logits.shape[:-1]:
        raise DataError(
            f"top1 needs one label for each row of the first output: labels have shape "
            f"{list(labels.shape)}, the output {list(logits.shape)}"
        )
    return 100.0 * float(np.mean(logits.argmax(-1) == labels))


def cosine(outputs: Outputs, reference: Outputs | None, labels: np.ndarray | None) -> float:
    """Mean over outputs and samples of <y, r> / (|y| |r|), r being the float network's output."""
    means = []
    for name, y in outputs.items():
        r = _against(reference, name)
        y, r = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (y, r))
        norms = np.linalg.norm(y, axis=1) * np.linalg.norm(r, axis=1)
        same = (y == r).all(axis=1)
        means.append(np.where(same, 1.0, (y * r).sum(1) / np.maximum(norms, 1e-300)).mean())
    return float(np.mean(means))


def mse(outputs: Outputs, reference: Outputs | None, labels: np.ndarray | None) -> float:
    """Mean of (y - r)^2 over all outputs, r being the float network's output."""
    squares, count = 0.0, 0
    for name, y in outputs.items():
        difference = np.asarray(y, np.float64) - _against(reference, name)
        squares, count = squares + float((difference**2).sum()), count + difference.size
    return squares / max(count, 1)


METRICS: Mapping[str, Metric] = {
    "top1": Metric("top1", top1, unit="%", needs_labels=True),
    "cosine": Metric("cosine", cosine, needs_reference=True),
    "mse": Metric("mse", mse, sign=-1, needs_reference=True),
}


def metric_named(name: str) -> Metric:
    """One of METRICS; ConfigError, with the nearest names, for any other."""
    if name not in METRICS:
        raise ConfigError(
            f"no metric {name!r}; a function of your own is module:function{nearest(name, METRICS)}"
        )
    return METRICS[name]


def user_metric(name: str, function: Callable[..., Any]) -> Metric:
    """`function(outputs, labels) -> float`, more is better, over the whole evaluation set."""

    def score(outputs: Outputs, reference: Outputs | None, labels: np.ndarray | None) -> float:
        try:
            value = float(function(dict(outputs), labels))
        except Exception as error:
            # Whatever the user's function raises: the line says whose it is.
            raise DataError(f"metric {name} raised {type(error).__name__}: {error}") from error
        if not np.isfinite(value):
            raise DataError(f"metric {name} gave {value}")
        return value

    return Metric(name, score)


def evaluator(
    metric: Metric,
    batches: Iterable[Mapping[str, np.ndarray]],
    inputs: Sequence[str],
    *,
    reference: Run | None = None,
) -> Evaluate:
    """`evaluate(run)`: the metric of `run` on all batches, times its sign: more is better.

    A last batch that is smaller is padded with its last sample and the padding dropped, so that
    one program serves all. `reference` is the float network, run once if the metric needs it.
    """
    kept = [dict(batch) for batch in batches]
    labels = None
    if kept and all("labels" in batch for batch in kept):
        labels = np.concatenate([batch["labels"] for batch in kept])
    elif metric.needs_labels:
        raise DataError(f"{metric.name} needs labels: an array 'labels' beside the inputs")
    kept = [{name: batch[name] for name in inputs} for batch in kept]
    wanted: Outputs | None = None
    if metric.needs_reference:
        if reference is None:
            raise ConfigError(f"{metric.name} compares with a reference, but none is given")
        wanted = _outputs(reference, kept)

    def evaluate(run: Run) -> float:
        return metric.sign * metric.score(_outputs(run, kept), wanted, labels)

    return evaluate


def _outputs(run: Run, batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """All outputs along the leading axis; batches are dispatched before the first is fetched."""
    size = max((_length(batch) for batch in batches), default=0)
    pending = [run({name: _padded(a, size) for name, a in batch.items()}) for batch in batches]
    parts: dict[str, list[np.ndarray]] = {}
    for batch, outputs in zip(batches, pending, strict=True):
        for name, value in outputs.items():
            array = np.asarray(value)
            cut = array.ndim and len(array) == size
            parts.setdefault(name, []).append(array[: _length(batch)] if cut else array)
    return {name: np.concatenate([np.atleast_1d(p) for p in ps]) for name, ps in parts.items()}


def _length(batch: Mapping[str, np.ndarray]) -> int:
    return max((len(a) for a in batch.values() if a.ndim), default=1)


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    if not array.ndim or len(array) == size:
        return array
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def _against(reference: Outputs | None, name: str) -> np.ndarray:
    if reference is None or name not in reference:
        raise DataError(f"no reference for output {name!r} to compare with")
    return np.asarray(reference[name], np.float64)
