"""What the rows of bench_reconstruction.py share: a network with its data and judge, a row."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from material import Images, model_path
from scipy.stats import spearmanr

import jqnt

__all__ = ["Bench", "Row", "bench", "row", "sentences"]

Row = dict[str, Any]

BELOW = ("s", "GiB", "%-gap", "relative", "points")
"""Units of figures that are to stay below their bar; all others are to reach it."""


class Bench(NamedTuple):
    """A folded network, its calibration batches, its judge: `score(params, qparams) -> %`."""

    graph: jqnt.Graph
    params: dict[str, Any]
    batches: list[dict[str, np.ndarray]]
    score: Callable[..., float]


def row(name: str, figure: float, unit: str, bar: float | None = None, detail: str = "") -> Row:
    """One measured figure beside its bar; without one it only informs."""
    below = unit in BELOW
    holds = None if bar is None else figure <= bar if below else figure >= bar
    sign = "<=" if below else ">="
    return {
        "name": name, "figure": float(figure), "unit": unit,
        "bar": None if bar is None else f"{sign} {bar:g}",
        "holds": None if holds is None else bool(holds), "detail": detail,
    }  # fmt: skip


def bench(data: Path, stem: str, images: Images, size: int, *, even: bool = False) -> Bench:
    """A classifier judged by its top-1; with `even` equalized first."""
    graph, params = folded(data, stem)
    if even:
        graph, params = jqnt.equalize(graph, params)
    judge = jqnt.evaluator(jqnt.metric_named("top1"), images.evaluation(size), graph.inputs)
    run = jqnt.session(graph, params)
    return Bench(
        graph,
        params,
        images.calibration(size),
        lambda params, qparams: judge(lambda x: run(params, qparams, x)),
    )


def folded(data: Path, stem: str) -> tuple[jqnt.Graph, dict[str, Any]]:
    """A network without batch normalization of its own."""
    graph, params, _ = jqnt.import_onnx(model_path(data, stem))
    return jqnt.fold_bn(*jqnt.cleanup(graph, params))


def sentences(data: Path) -> Bench:
    """MiniLM on STS-B, judged by Spearman's correlation over all pairs, in percent.

    Sentences come in batches of one length, 16, 32 or 64 tokens: padding is neither computed nor
    learned from.
    """
    graph, params = folded(data, "minilm_l6_stsb")
    with np.load(data / "stsb_tokens.npz") as file:
        sides = {
            split: [(file[f"{split}_ids_{s}"], file[f"{split}_mask_{s}"]) for s in "ab"]
            for split in ("calib", "eval")
        }
        scores = file["eval_score"]
    run = jqnt.session(graph, params)
    judged = [by_length(*side) for side in sides["eval"]]

    def score(params: Any, qparams: Any) -> float:
        found = []
        for places, batches in judged:
            parts = [run(params, qparams, x)["sentence_embedding"] for x in batches]
            whole = np.concatenate([np.asarray(part) for part in parts])
            found.append(whole[np.argsort(np.concatenate(places), kind="stable")])
        return 100 * float(spearmanr((found[0] * found[1]).sum(1), scores).statistic)

    both = [np.concatenate(parts) for parts in zip(*sides["calib"], strict=True)]
    return Bench(graph, params, by_length(*both)[1], score)


def by_length(
    ids: np.ndarray, mask: np.ndarray, size: int = 32, lengths: Sequence[int] = (16, 32, 64)
) -> tuple[list[np.ndarray], list[Mapping[str, np.ndarray]]]:
    """(places in the whole, batch) of sentences that are about equally long."""
    places, batches = [], []
    own = np.searchsorted(lengths, mask.sum(1))
    for kind, length in enumerate(lengths):
        members = np.flatnonzero(own == kind)
        for i in range(0, len(members), size):
            at = members[i : i + size]
            cut = ids[at, :length].astype(np.int64)
            places.append(at)
            batches.append(
                {
                    "input_ids": cut,
                    "attention_mask": mask[at, :length].astype(np.int64),
                    "token_type_ids": np.zeros_like(cut),
                }
            )
    return places, batches
