"""Calibration: batches -> ranges -> the parameters of every quantizer of a plan."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.affine import grid_limits
from jqnt.errors import ConfigError, DataError, nearest
from jqnt.formats import Format, Integer, Microscaling, Minifloat
from jqnt.granularity import PER_TENSOR, Granularity
from jqnt.observers import MINMAX, Grid, Observer, affine_of_range, parted
from jqnt.plan import Choice, Options, Plan, Spec, Theta, branch_specs
from jqnt.quantizers import Affine, Cast, Microscaled, SoftRound
from jqnt.scales import PowersOfTwo
from jqnt.types import Apply, Params, Quantizer, Symmetry

__all__ = ["Batches", "calibrate", "checked_batches"]

_VANISHING = 17 * math.log(2)
"""exp(-17 ln 2) is half a step of a probability of 16 bits."""

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
    importance: Sequence[float | int] | None = None,
    frozen: Mapping[str, Quantizer] | None = None,
    quantized_weights: bool = False,
) -> Theta:
    """theta: a quantizer for every spec of `plan`, `Options` for every choice.

    Activations are those of the float network on `batches`, observed by `observer` in one
    compiled step per batch: memory does not grow with the number of samples. With
    `quantized_weights` that network computes with the weights on their grids, as AIMET's
    simulator does: ranges then follow what rounded weights make, which matters below 8 bits
    unless a rounding is learned later. Tensors that share a quantizer are observed together.
    What Softmax alone reads is observed as max(x, max_axis(x) - 17 ln 2): a probability below
    2^-17 is none in 16 bits, so that masks do not widen the range. Weights, and constants that
    act as activations, are observed once, the weights by `weight_observer`. The logits of choices
    start at zero.

    `importance` has one weight per batch: what its values count in averages and histograms; a
    batch of weight 0 is not looked at. `frozen` has the quantizers of tensors that keep the one
    they have, such as `thaw` of encodings that were loaded.

    Raises ConfigError for a frozen quantizer of a tensor that the plan has none for, or of another
    format than the plan's; DataError for importance that does not fit the batches, for no batch,
    an empty one, NaN or infinity in the data or in an activation, and, by `apply`, for inputs of
    the wrong name, shape or type.
    """
    kept = _frozen(plan, frozen or {})
    wanted = {name: specs for name, specs in _tensors(plan).items() if name not in kept}
    known = {name for name in wanted if name in params}
    weights = {name for name, specs in wanted.items() if specs[0].role != "activation"} - known
    values = {name: params[name] for name in known}
    if weights:
        values |= apply(params, {}, {}, want=sorted(weights))

    def chosen_for(spec: Spec) -> Observer:
        return observer if spec.role == "activation" else weight_observer

    @jax.jit
    def observed(values: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        return {
            name: _observed(chosen_for(wanted[name][0]), value, wanted[name])
            for name, value in values.items()
        }

    states: dict[str, tuple[Any, ...]] = observed(values) if values else {}

    def state_of(name: str, spec: Spec) -> Any:
        return states[name][_granularities(wanted[name]).index(_observed_as(spec))]

    def range_of(name: str, spec: Spec) -> tuple[Any, Any] | None:
        """What the grid covers, if that is all that it depends on."""
        if spec.limits is not None or not _ranged(spec.format):
            return spec.limits or (0, 0)
        covers = chosen_for(spec).covers
        return None if covers is None else covers(state_of(name, spec))

    def finished(names: Iterable[str]) -> dict[tuple[str, Spec], Quantizer]:
        """The quantizers of these tensors, those that cover a range made together."""
        ranges: dict[tuple[str, Spec], tuple[Any, Any]] = {}
        found: dict[tuple[str, Spec], Grid] = {}
        alike: dict[Any, list[tuple[str, Spec]]] = {}
        for name, spec in ((n, spec) for n in names for spec in wanted[n]):
            ends = range_of(name, spec)
            if ends is not None:
                ranges[name, spec] = ends
            else:
                kind = (chosen_for(spec), spec.format, spec.symmetric)
                alike.setdefault(kind, []).append((name, spec))
        for (chosen, *kind), keys in alike.items():
            own = [state_of(*key) for key in keys]
            if chosen.finish_all is None:
                grids = [chosen.finish(state, *kind) for state in own]
            else:
                grids = chosen.finish_all(own, *kind)
            found.update(zip(keys, grids, strict=True))
        found |= _covering(ranges)
        for (name, _), own in found.items():
            if own.scale is not None and not np.isfinite(np.asarray(own.scale)).all():
                raise DataError(f"tensor {name!r} holds NaN or infinity on these data")
        return {(name, spec): _shaped(own, spec) for (name, spec), own in found.items()}

    chosen = {tensor for choice in plan.choices.values() for tensor in choice.tensors}
    seen = {n: s for n, s in wanted.items() if n not in values and _needs_range(s)}
    weighty = [
        name for name, spec in plan.specs.items()
        if quantized_weights and spec.role == "weight" and name not in chosen
    ]  # fmt: skip
    made = finished(name for name in weighty if name in wanted)

    def quantizer(name: str, spec: Spec) -> Quantizer:
        return kept[name] if name in kept else made[name, spec]

    rounded = {name: quantizer(name, plan.specs[name]) for name in weighty}
    weighted = _weighted(batches, importance)
    states |= _observe(apply, (params, rounded), plan, seen, weighted, observer)
    made |= finished(name for name in wanted if name not in weighty)
    theta: Theta = {n: quantizer(n, s) for n, s in plan.specs.items() if n not in chosen}
    for name, choice in plan.choices.items():
        theta[name] = Options(
            logit=jax.device_put(np.zeros(len(choice.options), np.float32)),
            branches={t: _branches(choice, t, quantizer) for t in choice.tensors},
        )
    return theta


def _covering(ranges: Mapping[tuple[str, Spec], tuple[Any, Any]]) -> dict[tuple[str, Spec], Grid]:
    """The grids that cover ranges, those of one format by one operation on all their ends."""
    alike: dict[Any, list[tuple[str, Spec]]] = {}
    found: dict[tuple[str, Spec], Grid] = {}
    for key, (low, high) in ranges.items():
        spec = key[1]
        fmt, granularity = spec.format, _observed_as(spec) if spec.limits is None else PER_TENSOR
        if isinstance(fmt, Microscaling) or not _ranged(fmt):
            low, high = jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32)
            found[key] = affine_of_range(low, high, fmt, spec.symmetric, granularity)
        else:
            alike.setdefault((fmt, spec.symmetric), []).append(key)
    flat = []
    for keys in alike.values():
        ends = [[np.asarray(end, np.float32).ravel() for end in ranges[key]] for key in keys]
        flat.append(tuple(np.concatenate([own[i] for own in ends]) for i in range(2)))
    grids = jax.device_get(_grids(flat, kinds=tuple(alike))) if flat else []
    for keys, grid in zip(alike.values(), grids, strict=True):
        shapes = [np.shape(ranges[key][0]) for key in keys]
        for key, own in zip(keys, parted(grid, shapes), strict=True):
            granularity = PER_TENSOR if key[1].limits is not None else _observed_as(key[1])
            found[key] = replace(own, granularity=granularity)
    return dict(zip(found, jax.device_put(list(found.values())), strict=True))


@partial(jax.jit, static_argnames=("kinds",))
def _grids(
    flat: list[tuple[Any, Any]], *, kinds: tuple[tuple[Format, Symmetry], ...]
) -> list[Grid]:
    return [affine_of_range(*ends, *kind) for ends, kind in zip(flat, kinds, strict=True)]


def _weighted(
    batches: Batches, importance: Sequence[float | int] | None
) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Every batch that counts, and what it counts."""
    if importance is None:
        yield from ((batch, 1.0) for batch in checked_batches(batches))
        return
    weights = np.asarray(importance, np.float64)
    if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any():
        raise DataError("the importance of batches is a list of finite numbers from 0 on")
    if not weights.any():
        raise DataError("no batch has an importance above 0")
    count = 0
    for count, batch in enumerate(checked_batches(batches), start=1):
        if count <= len(weights) and weights[count - 1] > 0:
            yield batch, float(weights[count - 1])
    if count != len(weights):
        raise DataError(f"{len(weights)} weights of importance for {count} batches")


def _frozen(plan: Plan, frozen: Mapping[str, Quantizer]) -> Mapping[str, Quantizer]:
    """The frozen quantizers, each checked against the plan."""
    for name, held in frozen.items():
        spec = plan.specs.get(name)
        searched = any(name in choice.tensors for choice in plan.choices.values())
        if spec is None or searched:
            where = f"is tied to {plan.tied[name]!r}" if name in plan.tied else "has no spec"
            raise ConfigError(
                f"the frozen quantizer of {name!r} has no place: in this plan it "
                f"{'is being searched' if searched else where}{nearest(name, plan.specs)}"
            )
        if not _fits(held, spec.format):
            raise ConfigError(f"the frozen quantizer of {name!r} is not {spec.format.name}")
    return frozen


def _fits(held: Any, fmt: Format) -> bool:
    if isinstance(held, Cast | Microscaled):
        return held.format == fmt
    if not isinstance(fmt, Integer) or not isinstance(held, Affine | SoftRound):
        return False
    return held.signed == fmt.signed and bool((jnp.asarray(held.bits) == fmt.bits).all())


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
            if isinstance(value, jax.Array) and not value.is_fully_addressable:
                value = value.addressable_shards[0].data  # each process looks at its own
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
    return any(s.limits is None and _ranged(s.format) for s in specs)


def _ranged(fmt: Format) -> bool:
    """Whether a format has a scale that depends on the range of what was seen."""
    if isinstance(fmt, Minifloat):
        return fmt.scaled
    return not isinstance(fmt, Microscaling) or fmt.scale is not None


def _observed_as(spec: Spec) -> Granularity:
    """The scale of microscaled blocks that is calibrated is the whole tensor's."""
    return PER_TENSOR if isinstance(spec.format, Microscaling) else spec.granularity


def _shaped(found: Grid, spec: Spec) -> Quantizer:
    """The quantizer with the axis of its blocks, or with its scales on the grid that they have.

    A wider step leaves the zero point where zero is: z' = qmin - (qmin - z) * scale / scale'.
    """
    if isinstance(found, Microscaled):
        axis = spec.granularity.axis
        return replace(found, axis=axis if isinstance(axis, int) else -1)
    if spec.scale_format is None or not isinstance(found, Affine):
        return found
    snapped = replace(found, scale_format=spec.scale_format).on_grid()
    snapped = replace(snapped, scale_format=spec.scale_format)
    if isinstance(spec.scale_format, PowersOfTwo) and not spec.symmetric:
        qmin, qmax = grid_limits(found.bits, found.signed, found.strict)
        below = (qmin - jnp.asarray(found.zero_point)) * found.scale
        zero = jnp.clip(jnp.round(qmin - below / snapped.scale), qmin, qmax)
        return replace(snapped, zero_point=zero)
    return snapped


def _granularities(specs: tuple[Spec, ...]) -> tuple[Granularity, ...]:
    """Those of the integer specs, each once, in order; a tensor has one state for each."""
    return tuple(dict.fromkeys(_observed_as(s) for s in specs if _ranged(s.format)))


def _observed(observer: Observer, value: Any, specs: tuple[Spec, ...]) -> tuple[Any, ...]:
    """The states after one look at `value`."""
    value = jnp.asarray(value, jnp.float32)
    return tuple(observer.update(observer.init(value, g), value) for g in _granularities(specs))


def _observe(
    apply: Apply,
    network: tuple[Params, dict[str, Quantizer]],
    plan: Plan,
    seen: dict[str, tuple[Spec, ...]],
    batches: Iterable[tuple[Mapping[str, Any], float]],
    observer: Observer,
) -> dict[str, tuple[Any, ...]]:
    """Tensor -> the states after all batches, in one compiled step for each; `network` is its
    params and the quantizers with which it computes."""
    members: dict[str, list[str]] = {name: [name] for name in seen}
    for tensor, leader in plan.tied.items():
        if leader in members:
            members[leader].append(tensor)
    want = [tensor for tensors in members.values() for tensor in tensors]

    def values_of(network: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        values = apply(*network, batch, want=want)
        return {n: _as_read(values[n], seen[leader][0]) for leader in seen for n in members[leader]}

    def update(
        state: Any, granularity: Granularity, name: str, values: dict[str, Any], weight: Any
    ) -> Any:
        # Another axis of a tied tensor may mean something else; its values are the leader's.
        tensors = members[name] if granularity == PER_TENSOR else [name]
        for tensor in tensors:
            state = observer.update(state, values[tensor].astype(jnp.float32), weight)
        return state

    @jax.jit
    def step(
        states: dict[str, tuple[Any, ...]], network: Any, batch: Mapping[str, Any], weight: Any
    ) -> Any:
        values = values_of(network, batch)
        return {
            name: tuple(
                update(state, g, name, values, weight)
                for state, g in zip(states[name], _granularities(specs), strict=True)
            )
            for name, specs in seen.items()
        }

    states: dict[str, tuple[Any, ...]] = {}
    for batch, weight in batches:
        if not want:
            continue
        if not states:
            shapes = jax.eval_shape(values_of, network, batch)
            states = {
                name: tuple(observer.init(shapes[name], g) for g in _granularities(specs))
                for name, specs in seen.items()
            }
        states = step(states, network, batch, jnp.float32(weight))
    return states


def _as_read(value: Any, spec: Spec) -> Any:
    """The tensor as its readers see it: Softmax sees nothing far below the maximum."""
    if spec.softmax_axis is None:
        return value
    return jnp.maximum(value, value.max(spec.softmax_axis, keepdims=True) - _VANISHING)


def _branches(
    choice: Choice, tensor: str, quantizer: Callable[[str, Spec], Quantizer]
) -> tuple[Quantizer, ...]:
    return tuple(quantizer(tensor, spec) for spec in branch_specs(choice, tensor))
