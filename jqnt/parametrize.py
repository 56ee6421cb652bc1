"""From grids to what trains in their place, and back."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import jax

from jqnt.errors import ConfigError
from jqnt.plan import Options, Plan, Theta, branch_specs
from jqnt.quantizers import Affine, Cast, affine_of

__all__ = ["Parametrization", "parametrize", "settle"]

Parametrization = Callable[..., Any]
"""`make(affine, batched=False) -> quantizer`: one of `jqnt.ranges`."""


def parametrize(
    theta: Theta,
    plan: Plan,
    make: Parametrization,
    *,
    role: Literal["weight", "activation"] | None = None,
) -> Theta:
    """theta with `make(affine, batched)` in place of every `Affine`, or of those of one role.

    Activations are `batched`: their first axis holds samples. Branches of choices are changed
    alike; other quantizers stay. Raises ConfigError, naming the tensor, where a method cannot
    take a grid, and if there is none to change.
    """
    changed = 0

    def made(name: str, quantizer: Any, spec_role: str) -> Any:
        nonlocal changed
        if not isinstance(quantizer, Affine) or role not in (None, spec_role):
            return quantizer
        changed += 1
        if quantizer.shifted or quantizer.rounding != "half_even" or quantizer.scale_format:
            raise ConfigError(
                f"tensor {name!r}: its grid rounds or stands otherwise than the methods of "
                f"jqnt.ranges do, or its scales lie on a grid: train its plain scale"
            )
        try:
            return make(quantizer, batched=spec_role == "activation")
        except ConfigError as error:
            raise ConfigError(f"tensor {name!r}: {error}") from None

    found: Theta = {}
    for name, group in theta.items():
        if not isinstance(group, Options):
            found[name] = made(name, group, plan.specs[name].role)
            continue
        choice = plan.choices[name]
        branches = {
            tensor: tuple(
                made(tensor, quantizer, spec.role)
                for quantizer, spec in zip(branches, branch_specs(choice, tensor), strict=True)
            )
            for tensor, branches in group.branches.items()
        }
        found[name] = replace(group, branches=branches)
    if not changed:
        raise ConfigError(f"no {role or 'quantizer'} on an integer grid to parametrize")
    return found


def settle(theta: Theta) -> Theta:
    """theta with the `Affine` that each range parametrization ends on.

    What carries more than a grid (soft rounding, learned codes) stays as it is.
    """

    def settled(quantizer: Any) -> Any:
        grid = None if hasattr(quantizer, "harden") else affine_of(quantizer)
        return quantizer if grid is None else grid

    def is_quantizer(node: Any) -> bool:
        return isinstance(node, Cast) or affine_of(node) is not None

    return jax.tree.map(lambda q: settled(q) if is_quantizer(q) else q, theta, is_leaf=is_quantizer)
