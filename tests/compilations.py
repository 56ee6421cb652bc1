"""Counts what XLA compiles, by function.

The sizes of jit's own caches can't be asserted: JAX evicts their entries when others crowd them.
"""

from collections import Counter

import jax

_seen: Counter[str] = Counter()


def _heard(event: str, _seconds: float, fun_name: str = "", **_: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _seen[fun_name.removeprefix("jit(").removesuffix(")")] += 1


jax.monitoring.register_event_duration_secs_listener(_heard)


def compilations(name: str) -> int:
    """How many programs of the jitted function of that name this process has compiled so far."""
    return _seen[name]
