"""Calibration: batches -> ranges -> the parameters of every quantizer of a plan."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.errors import DataError
from jqnt.formats import PER_TENSOR, Granularity, Minifloat
from jqnt.observers import MINMAX, Observer, affine_of_range
from jqnt.plan import Choice, Options, Plan, Spec, Theta, branch_specs
from jqnt.quantizers import Cast
from jqnt.types import Apply, Params, Quantizer

__all__ = ["Batches", "calibrate", "checked_batches"]

Batches = Iterable[Any] | Callable[[], Iterable[Any]]
"""Mappings of input names to arrays, gone through once; or a function that starts them."""


def calibrate(
    apply: Apply,
    params: Params,
    plan: Plan,
    batches: Batches,
    *,
    observer: Observer = MINMAX,
    weight_observer: Observer = MINMAX,
) -> Theta:
    """theta: a quantizer for every spec of `plan`, `Options` for every choice.

    Activations are those of the float network on `batches`, observed by `observer` in one
    compiled step per batch: memory does not grow with the number of samples. Tensors that share
    a quantizer are observed together. Weights, and constants that act as activations, are
    observed once, the weights by `weight_observer`. The logits of choices start at zero.

    Raises DataError for no batch, an empty one, NaN or infinity in the data or in an activation,
    and, by `apply`, for inputs of the wrong name, shape or type.
    """
    wanted = _tensors(plan)
    known = {name for name in wanted if name in params}
    weights = {name for name, specs in wanted.items() if specs[0].role != "activation"} - known
    values = {name: params[name] for name in known}
    if weights:
        values |= apply(params, {}, {}, want=sorted(weights))
    states: dict[str, tuple[Any, ...]] = {}
    for name, value in values.items():
        chosen = observer if wanted[name][0].role == "activation" else weight_observer
        states[name] = _observed(chosen, value, wanted[name])
    seen = {n: s for n, s in wanted.items() if n not in values and _needs_range(s)}
    states |= _observe(apply, params, plan, seen, batches, observer)

    def quantizer(name: str, spec: Spec) -> Quantizer:
        if isinstance(spec.format, Minifloat):
            return Cast(spec.format)
        if spec.limits is not None:
            low, high = (jnp.float32(limit) for limit in spec.limits)
            return affine_of_range(low, high, spec.format, spec.symmetric)
        chosen = weight_observer if spec.role != "activation" else observer
        state = states[name][_granularities(wanted[name]).index(spec.granularity)]
        found = chosen.finish(state, spec.format, spec.symmetric)
        if not isinstance(found, Cast) and not bool(jnp.isfinite(found.scale).all()):
            raise DataError(f"tensor {name!r} holds NaN or infinity on these data")
        return found

    chosen = {tensor for choice in plan.choices.values() for tensor in choice.tensors}
    theta: Theta = {n: quantizer(n, s) for n, s in plan.specs.items() if n not in chosen}
    for name, choice in plan.choices.items():
        theta[name] = Options(
            logit=jnp.zeros(len(choice.options), jnp.float32),
            branches={t: _branches(choice, t, quantizer) for t in choice.tensors},
        )
    return theta


def checked_batches(
    batches: Batches,
) -> Iterator[Mapping[str, Any]]:
    """The batches, each looked at: arrays by name, as long as each other, not empty, finite.

    Raises DataError that names the batch and the array; also if there is no batch at all.
    """
    count = 0
    for count, batch in enumerate(batches() if callable(batches) else batches, start=1):
        where = f"batch {count}"
        if not isinstance(batch, Mapping) or not batch:
            raise DataError(f"{where} is no mapping of input names to arrays")
        for name, value in batch.items():
            array = np.asarray(value)
            if array.size == 0:
                raise DataError(f"{where}: array {name!r} is empty, of shape {array.shape}")
            if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
                at = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
                raise DataError(f"{where}: array {name!r} holds NaN or infinity, first at {at}")
        yield batch
    if count == 0:
        raise DataError("the set of batches is empty; calibration needs at least one sample")


def _tensors(plan: Plan) -> dict[str, tuple[Spec, ...]]:
    """Every tensor with parameters of its own, and the specs that it may have."""
    specs = {name: (spec,) for name, spec in plan.specs.items()}
    for choice in plan.choices.values():
        specs |= {tensor: branch_specs(choice, tensor) for tensor in choice.tensors}
    return specs


def _needs_range(specs: tuple[Spec, ...]) -> bool:
    return any(s.limits is None and not isinstance(s.format, Minifloat) for s in specs)


def _granularities(specs: tuple[Spec, ...]) -> tuple[Granularity, ...]:
    """Those of the integer specs, each once, in order; a tensor has one state for each."""
    return tuple(dict.fromkeys(s.granularity for s in specs if not isinstance(s.format, Minifloat)))


def _observed(observer: Observer, value: Any, specs: tuple[Spec, ...]) -> tuple[Any, ...]:
    """The states after one look at `value`."""
    value = jnp.asarray(value, jnp.float32)
    return tuple(observer.update(observer.init(value, g), value) for g in _granularities(specs))


def _observe(
    apply: Apply,
    params: Params,
    plan: Plan,
    seen: dict[str, tuple[Spec, ...]],
    batches: Batches,
    observer: Observer,
) -> dict[str, tuple[Any, ...]]:
    """Tensor -> the states after all batches, in one compiled step for each."""
    members: dict[str, list[str]] = {name: [name] for name in seen}
    for tensor, leader in plan.tied.items():
        if leader in members:
            members[leader].append(tensor)
    want = [tensor for tensors in members.values() for tensor in tensors]

    def values_of(params: Params, batch: Mapping[str, Any]) -> dict[str, Any]:
        return apply(params, {}, batch, want=want)

    def update(state: Any, granularity: Granularity, name: str, values: dict[str, Any]) -> Any:
        # Another axis of a tied tensor may mean something else; its values are the leader's.
        tensors = members[name] if granularity == PER_TENSOR else [name]
        for tensor in tensors:
            state = observer.update(state, values[tensor].astype(jnp.float32))
        return state

    @jax.jit
    def step(states: dict[str, tuple[Any, ...]], params: Params, batch: Mapping[str, Any]) -> Any:
        values = values_of(params, batch)
        return {
            name: tuple(
                update(state, g, name, values)
                for state, g in zip(states[name], _granularities(specs), strict=True)
            )
            for name, specs in seen.items()
        }

    states: dict[str, tuple[Any, ...]] = {}
    for batch in checked_batches(batches):
        if not want:
            continue
        if not states:
            shapes = jax.eval_shape(values_of, params, batch)
            states = {
                name: tuple(observer.init(shapes[name], g) for g in _granularities(specs))
                for name, specs in seen.items()
            }
        states = step(states, params, batch)
    return states


def _branches(
    choice: Choice, tensor: str, quantizer: Callable[[str, Spec], Quantizer]
) -> tuple[Quantizer, ...]:
    return tuple(quantizer(tensor, spec) for spec in branch_specs(choice, tensor))
