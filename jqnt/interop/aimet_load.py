"""Loading an encodings file onto a plan: strict or not, whole or in part, with all mismatches."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import DataError
from jqnt.formats import FP32, Integer
from jqnt.graph.ir import Graph
from jqnt.interop.aimet_read import from_aimet
from jqnt.plan import Plan, Spec

__all__ = ["Mismatch", "load_encodings"]


@dataclass(frozen=True)
class Mismatch:
    """Where a file and a plan disagree about a tensor; None where one of them is silent."""

    tensor: str
    what: str
    file: str | None
    plan: str | None

    def __str__(self) -> str:
        return f"{self.tensor!r}: {self.what} (file {self.file}, plan {self.plan})"


def load_encodings(
    source: str | Path | Mapping[str, Any],
    graph: Graph,
    params: Mapping[str, Any],
    plan: Plan,
    *,
    strict: bool = True,
    partial: bool = False,
) -> tuple[Encodings, tuple[Mismatch, ...]]:
    """(the encodings of a file for the tensors of a plan, where the two disagree).

    Biases whose scale follows from others' may be in the file or not. Disagreements are tensors
    that only one of them has, and other formats, symmetries or granularities; the file wins.
    `partial` accepts planned tensors that the file does not have. To freeze what was loaded while
    the rest trains: {**bind(theta, plan), **thaw(encodings)}.

    Raises DataError, with the first disagreements, if `strict` and there are any, and for
    planned tensors that are missing unless `partial`.
    """
    unknown: list[str] = []
    loaded = from_aimet(source, graph, params, unknown=unknown)
    found = [Mismatch(name, "no such tensor in the graph", "present", None) for name in unknown]
    tied = {name: plan.specs[leader] for name, leader in plan.tied.items()}
    planned = {n: spec for n, spec in {**plan.specs, **tied}.items() if spec.format != FP32}
    for name, encoding in loaded.items():
        if name in plan.biases:
            continue
        if name not in planned:
            found.append(Mismatch(name, "not planned", _words(encoding), None))
            continue
        spec = planned[name]
        theirs, ours = _words(encoding), spec.format.name
        if encoding.format.name != ours:
            found.append(Mismatch(name, "format", theirs, ours))
        elif spec.symmetric and not (encoding.symmetric or _one_sided(spec, encoding)):
            found.append(Mismatch(name, "symmetry", "asymmetric", "symmetric"))
        if encoding.granularity != spec.granularity and encoding.scale is not None:
            granularity = encoding.granularity, spec.granularity
            found.append(Mismatch(name, "granularity", *map(_axes, granularity)))
    missing = [Mismatch(n, "missing", None, planned[n].format.name) for n in planned
               if n not in loaded]  # fmt: skip
    where = "encodings" if isinstance(source, Mapping) else str(source)
    if missing and not partial:
        raise DataError(f"{where}: {_first(missing)}; load it with partial=True")
    if strict and found:
        raise DataError(f"{where}: {_first(found)}; load it with strict=False")
    return loaded, (*found, *missing)


def _one_sided(spec: Spec, encoding: Encoding) -> bool:
    """Whether zero is the lowest code, where the plan takes that."""
    if spec.symmetric != "one_sided" or not isinstance(encoding.format, Integer):
        return False
    return bool((encoding.zero_point == encoding.format.limits[0]).all())


def _first(mismatches: list[Mismatch]) -> str:
    rest = f" and {len(mismatches) - 3} more" if len(mismatches) > 3 else ""
    return f"{len(mismatches)} disagreements, {', '.join(map(str, mismatches[:3]))}{rest}"


def _words(encoding: Encoding) -> str:
    return encoding.format.name


def _axes(granularity: Any) -> str:
    if granularity.axis is None:
        return "one scale"
    block = f", blocks of {granularity.block}" if granularity.block else ""
    return f"axis {granularity.axis}{block}"
