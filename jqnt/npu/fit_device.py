"""Device parameters from measured latencies: robust, with priors, cross-validated, with a band."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jqnt.errors import ConfigError, DataError, nearest
from jqnt.npu.cost import group_costs, with_blocks
from jqnt.npu.devices import Device
from jqnt.npu.elements import ALL
from jqnt.npu.knobs import GENERAL, Knob, scaled, start_values
from jqnt.npu.smooth import RELAXED
from jqnt.npu.union import union
from jqnt.npu.workload import Workload

__all__ = ["Fitted", "Measurement", "fit_device", "fit_devices"]

_NOISE = 0.08  # standard deviation of log latency that the model is not asked to explain
_HUBER = 0.15  # log error from which on a measurement counts linearly
_GAIN = 1e-3  # a step that lowers the loss by less is idle
_BAND = 1.2816  # a normal deviate whose two sides hold 80 %


class Measurement(NamedTuple):
    """A measured latency: of a whole network, or of one of its groups where `group` names it."""

    workload: Workload
    pair: str
    latency_s: float
    device: str = ""
    group: str = ""


@dataclass(frozen=True)
class Fitted:
    """The fitted devices, and the evidence, one entry per measurement in order.

    `predicted_s` is what the fitted device says; `held_out_s` what a fit says that has not seen
    the measurement's workload (nan without cross-validation). `devices` carry as
    `relative_error` half the width of the band that holds 80 % of held-out errors.
    """

    devices: Mapping[str, Device]
    predicted_s: np.ndarray
    held_out_s: np.ndarray
    loss: float


def fit_device(
    device: Device,
    measurements: Sequence[Measurement],
    knobs: Sequence[Knob] = GENERAL,
    *,
    validate: bool = True,
    steps: int = 300,
) -> tuple[Device, Fitted]:
    """One device from its measurements (their `device` does not count); see `fit_devices`."""
    named = [m._replace(device=device.name) for m in measurements]
    fitted = fit_devices({device.name: device}, named, knobs, validate=validate, steps=steps)
    return fitted.devices[device.name], fitted


def fit_devices(
    devices: Mapping[str, Device],
    measurements: Sequence[Measurement],
    knobs: Sequence[Knob],
    *,
    validate: bool = True,
    steps: int = 300,
) -> Fitted:
    """Several devices at once: minimizes, by L-BFGS on the logarithms of what the knobs scale,

        sum_m huber(log(predicted_m / measured_m)) / noise^2 + sum_knobs deviation^2 / 2 spread^2

    Shared knobs have one value for all devices. The devices' own values are the centres of the
    priors, and must agree in everything but numbers. With `validate`, the fit is repeated
    without each workload in turn, from where the whole fit ended to its own minimum.

    Raises DataError without measurements or for one that is not positive; ConfigError for an
    unknown device, pair or group.
    """
    workloads = list({id(m.workload): m.workload for m in measurements}.values())
    rows = _rows(devices, workloads, measurements)
    stacked = _stack(devices)
    joined = with_blocks(union(workloads), next(iter(devices.values())))
    start = start_values(knobs, len(devices))
    index = _Index(*(jnp.asarray(a) for a in rows))
    pairs = tuple(dict.fromkeys(m.pair for m in measurements))
    segments = np.repeat(np.arange(len(workloads)), [len(w.groups) for w in workloads])
    log_measured = jnp.log(jnp.asarray([m.latency_s for m in measurements], jnp.float32))

    def predict(values: dict[str, Array]) -> Float[Array, " rows"]:
        return _predict(scaled(stacked, knobs, values), joined, pairs, segments, index)

    def loss(values: dict[str, Array], weight: Float[Array, " rows"]) -> Float[Array, ""]:
        error = jnp.log(predict(values)) - log_measured
        misfit = jnp.sum(weight * optax.losses.huber_loss(error, delta=_HUBER))
        return misfit / _NOISE**2 + sum(knob.penalty(values[knob.name]) for knob in knobs)

    at = {id(w): i for i, w in enumerate(workloads)}
    group = np.array([at[id(m.workload)] for m in measurements])
    folds = sorted(set(group)) if validate and len(set(group)) > 1 else []
    weights = np.array([group != fold for fold in folds] + [np.ones(len(group))], np.float32)
    fits, losses = _descend(loss, start, jnp.asarray(weights), steps)
    predictions = np.asarray(jax.jit(lambda fits: jax.lax.map(predict, fits))(fits))
    held_out = np.full(len(group), np.nan)
    for row, fold in enumerate(folds):
        held_out[group == fold] = predictions[row, group == fold]
    last = jax.tree.map(lambda x: x[-1], fits)
    found = scaled(stacked, knobs, last)
    measured = np.array([m.latency_s for m in measurements])
    error = np.log(held_out / measured)
    result = {}
    for d, (name, device) in enumerate(devices.items()):
        own = error[np.array([m.device == name for m in measurements])]
        own = own[np.isfinite(own)]
        band = _BAND * float(np.sqrt(np.mean(own**2))) if len(own) else float(device.relative_error)
        numbers = jax.tree.map(lambda x, d=d: float(x[d]), found)
        result[name] = replace(numbers, name=device.name, relative_error=band)
    return Fitted(result, predictions[-1], held_out, float(losses[-1]))


class _Index(NamedTuple):
    """Where each measurement finds its prediction; `group` is -1 for a whole network."""

    device: Any
    workload: Any
    pair: Any
    group: Any


def _rows(
    devices: Mapping[str, Device],
    workloads: Sequence[Workload],
    measurements: Sequence[Measurement],
) -> tuple[list[int], list[int], list[int], list[int]]:
    if not measurements:
        raise DataError("no measurements to fit to")
    place, machines = {id(w): i for i, w in enumerate(workloads)}, list(devices)
    first = np.concatenate([[0], np.cumsum([len(w.groups) for w in workloads])])
    pairs = list(dict.fromkeys(m.pair for m in measurements))
    columns: tuple[list[int], ...] = ([], [], [], [])
    for m in measurements:
        if not (np.isfinite(m.latency_s) and m.latency_s > 0):
            raise DataError(
                f"measurement of {m.workload.name!r}: {m.latency_s} s; must be positive"
            )
        if m.device not in devices:
            raise ConfigError(f"no device {m.device!r}{nearest(m.device, devices)}")
        devices[m.device].pair(m.pair)
        at = place[id(m.workload)]
        inside = m.workload.index(m.group) if m.group else -1 - first[at]
        row = (machines.index(m.device), at, pairs.index(m.pair), int(first[at] + inside))
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return columns  # pyright: ignore[reportReturnType]


def _stack(devices: Mapping[str, Device]) -> Device:
    """One device whose leaves have an entry per device."""
    same = [replace(device, name="") for device in devices.values()]
    for name, device in zip(devices, same, strict=True):
        if jax.tree.structure(device) != jax.tree.structure(same[0]):
            raise ConfigError(
                f"devices {name!r} and {next(iter(devices))!r} differ in more than numbers "
                f"(formats, fusions, rules); fit them one by one"
            )
    return jax.tree.map(lambda *leaves: jnp.asarray(leaves, jnp.float32), *same)


def _predict(
    stacked: Device,
    joined: Workload,
    pairs: tuple[str, ...],
    segments: np.ndarray,
    index: _Index,
) -> Float[Array, " rows"]:
    """The prediction of each measurement, in seconds."""
    count = int(segments[-1]) + 1

    def one(device: Device) -> tuple[Array, Array]:
        costs = [group_costs(joined, device, device.pair(p), ALL, RELAXED) for p in pairs]
        table = jnp.stack([cost.latency_s for cost in costs], axis=1)
        totals = jax.ops.segment_sum(table, segments, count) + device.graph_s
        return totals, table

    totals, table = jax.vmap(one)(stacked)
    whole = totals[index.device, index.workload, index.pair]
    part = table[index.device, jnp.maximum(index.group, 0), index.pair]
    return jnp.where(index.group < 0, whole, part)


def _descend(
    loss: Any, start: dict[str, Array], weights: Float[Array, "folds rows"], steps: int
) -> tuple[dict[str, Array], Float[Array, " folds"]]:
    """L-BFGS with a line search for every row of weights by itself; the last row comes first, and
    the others start where it ended. A fit ends when three steps running gain next to nothing."""
    optimizer = optax.lbfgs(memory_size=20)

    def one(begin: dict[str, Array], weight: Float[Array, " rows"]) -> tuple[Any, Array]:
        def own(values: dict[str, Array]) -> Array:
            return loss(values, weight)

        value_and_grad = optax.value_and_grad_from_state(own)

        def going(carry: Any) -> Array:
            _, _, _, count, idle = carry
            return (count < steps) & (idle < 3)

        def step(carry: Any) -> Any:
            values, state, before, count, idle = carry
            value, gradient = value_and_grad(values, state=state)
            updates, state = optimizer.update(
                gradient, state, values, value=value, grad=gradient, value_fn=own
            )
            gained = before - value > _GAIN
            return (
                optax.apply_updates(values, updates),
                state,
                value,
                count + 1,
                jnp.where(gained, 0, idle + 1),
            )

        begun = (begin, optimizer.init(begin), jnp.float32(jnp.inf), 0, jnp.int32(0))
        values, *_ = jax.lax.while_loop(going, step, begun)
        return values, own(values)

    @jax.jit
    def run(weights: Float[Array, "folds rows"]) -> tuple[Any, Array]:
        whole, least = one(start, weights[-1])
        fits, losses = jax.lax.map(lambda weight: one(whole, weight), weights[:-1])
        joined = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), fits, whole)
        return joined, jnp.append(losses, least)

    return run(weights)
