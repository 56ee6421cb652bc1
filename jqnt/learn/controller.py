"""How the price of a constraint follows its excess: augmented Lagrangian, PID."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jqnt.errors import ConfigError

__all__ = ["LAGRANGIAN", "Controller", "augmented", "lagrangian", "pid", "raise_multiplier"]


class Controller(NamedTuple):
    """State goes in and comes out, as in optax; `excess` is g [constraints], g <= 0 is feasible.

    `init(constraints) -> state`, a dict of arrays with "multiplier" [constraints] among them;
    `price(excess, state) -> scalar` is what the loss gains; `update(excess, state) -> state`.
    """

    init: Callable[[int], dict[str, Any]]
    price: Callable[[Any, dict[str, Any]], Any]
    update: Callable[[Any, dict[str, Any]], dict[str, Any]]


def lagrangian(penalty: float = 20.0, rate: float = 2.0) -> Controller:
    """The augmented Lagrangian: `augmented` as the price, `raise_multiplier` after each step."""
    _check(penalty=penalty, rate=rate)

    def init(constraints: int) -> dict[str, Any]:
        return {"multiplier": jnp.zeros(constraints)}

    def price(excess: Any, state: dict[str, Any]) -> Any:
        return augmented(excess, state["multiplier"], penalty)

    def update(excess: Any, state: dict[str, Any]) -> dict[str, Any]:
        return {"multiplier": raise_multiplier(excess, state["multiplier"], rate)}

    return Controller(init, price, update)


def pid(proportional: float = 20.0, integral: float = 2.0, derivative: float = 20.0) -> Controller:
    """The multiplier as a PID controller's answer to the excess (Stooke et al. 2020, alg. 2).

    I <- max(0, I + g); D = max(0, g - g before); lambda = max(0, Kp g + Ki I + Kd D), and the
    price is lambda * g with lambda held fixed: it damps the swings that an integral alone, the
    ordinary Lagrangian, has.
    """
    _check(proportional=proportional, integral=integral, derivative=derivative)

    def init(constraints: int) -> dict[str, Any]:
        zero = jnp.zeros(constraints)
        return {"multiplier": zero, "integral": zero, "before": zero}

    def price(excess: Any, state: dict[str, Any]) -> Any:
        return (jax.lax.stop_gradient(state["multiplier"]) * excess).sum()

    def update(excess: Any, state: dict[str, Any]) -> dict[str, Any]:
        g = jax.lax.stop_gradient(excess)
        total = jnp.maximum(0, state["integral"] + g)
        rise = jnp.maximum(0, g - state["before"])
        answer = proportional * g + integral * total + derivative * rise
        return {"multiplier": jnp.maximum(0, answer), "integral": total, "before": g}

    return Controller(init, price, update)


def augmented(
    excess: Float[Array, "..."], multiplier: Float[Array, "..."], penalty: float
) -> Float[Array, ""]:
    """(max(0, lambda + rho g)^2 - lambda^2) / (2 rho), the price of g = cost / budget - 1 <= 0.

    Hestenes 1969, Powell 1969, for inequalities Rockafellar 1973; summed over constraints.
    """
    pushed = jnp.maximum(0, multiplier + penalty * excess)
    return ((pushed**2 - multiplier**2) / (2 * penalty)).sum()


def raise_multiplier(
    excess: Float[Array, "..."], multiplier: Float[Array, "..."], rate: float
) -> Float[Array, "..."]:
    """lambda <- max(0, lambda + rate * g)."""
    return jnp.maximum(0, multiplier + rate * jax.lax.stop_gradient(excess))


def _check(**gains: float) -> None:
    for name, value in gains.items():
        if not 0 <= value < float("inf") or (name == "penalty" and value == 0):
            raise ConfigError(f"{name} is {value}; expected a positive number")


LAGRANGIAN = lagrangian()
"""The default: rho 20, rate 2."""
