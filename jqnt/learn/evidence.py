"""What a search found as plain documents: allocation, certificate, front."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jqnt.learn.search import Found
from jqnt.learn.space import Space

__all__ = ["allocation", "certificate", "front_points"]


def allocation(space: Space, found: Found) -> list[dict[str, Any]]:
    """Per choice its tensors and the format that each of them has."""
    rows = []
    for name, choice in space.plan.choices.items():
        option = choice.options[found.assignment[name]]
        formats = {t: s.format.name for t, s in zip(choice.tensors, option, strict=True)}
        rows.append({"choice": name, "option": found.assignment[name], "formats": formats})
    return rows


def certificate(space: Space, found: Found, budget: Sequence[float]) -> dict[str, Any]:
    """All that is needed to evaluate the dual bound again.

    D = sum_g min_k (loss[g][k] + sum_c multiplier[c] * cost[c][g][k]) - sum_c multiplier[c] *
    room[c] <= the least loss of any plan within the budgets, by the tables; null is an option
    that does not exist.
    """
    proof, priced = found.certificate, space.prices
    room = np.asarray(budget, np.float64) - priced.constant
    return {
        "kinds": list(priced.kinds),
        "budget": [float(b) for b in budget],
        "room": room.tolist(),
        "choices": list(priced.choices),
        "taken": [found.assignment[name] for name in priced.choices],
        "loss_table": _plain(found.table),
        "cost_table": [_plain(table) for table in priced.table],
        "multiplier": list(proof.multiplier),
        "loss": proof.loss,
        "dual_bound": proof.dual_bound,
        "gap": proof.gap,
        "exact": proof.exact,
        "additivity": proof.additivity,
        "true_loss": found.loss,
    }


def front_points(
    space: Space, budgets: Sequence[Sequence[float]], found: Sequence[Found]
) -> list[dict[str, Any]]:
    """Per budget what was found, and whether another point is as good at no more cost."""
    points = []
    for budget, one in zip(budgets, found, strict=True):
        proof = one.certificate
        points.append(
            {
                "budget": dict(zip(space.prices.kinds, map(float, budget), strict=True)),
                "cost": dict(one.cost),
                "loss": one.loss,
                "dual_bound": proof.dual_bound,
                "gap": proof.gap,
                "exact": proof.exact,
                "additivity": proof.additivity,
                "assignment": dict(one.assignment),
            }
        )
    for point in points:
        point["dominated"] = any(_better(other, point) for other in points)
    return points


def _better(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """No worse in anything, and better in something."""
    first, second = ([p["loss"], *p["cost"].values()] for p in (a, b))
    return all(x <= y for x, y in zip(first, second, strict=True)) and first != second


def _plain(table: np.ndarray) -> list[list[float | None]]:
    return [[float(v) if np.isfinite(v) else None for v in row] for row in table]
