"""Bit-exact emulation: `lower(graph, params, encodings) -> run`, a jitted function on codes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.encodings import Encodings
from jqnt.errors import ConfigError, UnsupportedError, nearest
from jqnt.formats import Integer, storage_dtype
from jqnt.graph.ir import Graph, Node
from jqnt.graph.layout import Laid, last_quantizer, to_last, to_onnx
from jqnt.graph.lower import call, checked_input, shape_inputs
from jqnt.integer.absorb import absorb
from jqnt.integer.arithmetic import arithmetic_named
from jqnt.integer.exact import exact_mul
from jqnt.integer.group import Group, Site, per_tensor
from jqnt.integer.kernel_join import rescaled, rescaling
from jqnt.integer.kernel_pool import float_mean
from jqnt.integer.kernels import KERNELS
from jqnt.integer.narrow import Accumulator
from jqnt.integer.operands import Operands
from jqnt.integer.partition import Move, Step, partition
from jqnt.integer.requantize import quantize_float
from jqnt.integer.rule import Out, container, settled, store, true_codes
from jqnt.thaw import quantizer_of

__all__ = ["Program", "compiled", "execute", "lower", "program_of", "runner", "tables_of"]


@dataclass(frozen=True, eq=False)
class Program:
    """The steps of a graph in order; `tables` holds all the numbers, the rest is static."""

    site: Site
    steps: tuple[Step, ...]
    encodings: Encodings
    concrete: frozenset[str]


def lower(
    graph: Graph,
    params: Mapping[str, Any],
    encodings: Encodings,
    arithmetic: str = "onnxruntime",
    unmatched: str = "error",
    accumulator: Accumulator | None = None,
):
    """`run(inputs, want=graph.outputs, integers=False) -> {tensor name -> array}` on integers.

    Every tensor with an integer encoding holds codes; `run` computes them as the named backend
    does, one kernel for each group of nodes between encoded tensors. What carries a float format
    or no encoding runs in float32 (rounded to that format), with conversions at the boundaries.
    Inputs are floats, or codes where they are integers and encoded. Codes leave as floats,
    (code - zero_point) * scale, or as they are with `integers`. `want` may name any tensor that
    is not inside a group. `accumulator` makes the sums of products narrower than 32 bits.

    Raises UnsupportedError, naming the nodes, for nodes between integer tensors that match no
    kernel of the arithmetic; with `unmatched="float"` these run in float32 between their codes.
    """
    program = program_of(graph, params, encodings, arithmetic, unmatched, accumulator)
    return runner(program, tables_of(program), compiled(program))


def compiled(program: Program):
    """`execute` of the program under jit."""
    return jax.jit(partial(execute, program), static_argnames=("want", "integers"))


def runner(program: Program, tables: list[Any], jitted: Any):
    """The checked `run` of a compiled program on these tables."""
    graph, known = program.site.operands.graph, _known(program)

    def run(
        inputs: Mapping[str, Any],
        want: Sequence[str] = graph.outputs,
        integers: bool = False,
    ) -> dict[str, Any]:
        for name in want:
            if name not in known:
                graph.check(name)
                raise ConfigError(
                    f"tensor {name!r} has no encoding and is fused into a group, so it does not "
                    f"exist on integers{nearest(name, known)}"
                )
        sizes: dict[str, int] = {}
        values = {
            name: checked_input(graph, name, inputs, name in program.concrete, sizes)
            for name in graph.inputs
        }
        fixed = {n: v for n, v in values.items() if isinstance(v, np.ndarray)}
        if fixed:
            raise UnsupportedError(
                f"inputs {sorted(fixed)} decide shapes; integer emulation needs them as constants"
            )
        return jitted(tables, values, want=tuple(want), integers=integers)

    return run


def program_of(
    graph: Graph,
    params: Mapping[str, Any],
    encodings: Encodings,
    arithmetic: str,
    unmatched: str,
    accumulator: Accumulator | None,
) -> Program:
    """The steps that `lower` runs; raises what it raises."""
    if unmatched not in ("error", "float"):
        raise ConfigError(f"unmatched is 'error' or 'float', not {unmatched!r}")
    graph, encodings = absorb(graph, encodings)
    operands = Operands(graph, params, encodings)
    rules = arithmetic_named(arithmetic)
    site, steps = partition(operands, rules, unmatched == "float", accumulator)
    return Program(site, steps, encodings, frozenset(shape_inputs(graph)))


def _known(program: Program) -> frozenset[str]:
    made = {o for step in program.steps for o in step.outputs if o}
    graph = program.site.operands.graph
    return frozenset({*made, *graph.inputs, *program.site.operands.static})


def tables_of(program: Program) -> list[Any]:
    """One table per step, and last the float tensors that float steps read."""
    site = program.site
    tables: list[Any] = []
    floats: dict[str, np.ndarray] = {}
    for step in program.steps:
        match step:
            case Group():
                tables.append(KERNELS[step.head.op].prepare(step, site))
            case Move():
                tables.append(_move_table(step, site))
            case _:
                tables.append({})
                floats.update(
                    (name, site.operands.value(name))
                    for name in step.inputs
                    if name in site.operands.static and name not in site.operands.graph.constants
                )
    for name in site.operands.graph.outputs:
        if name in site.operands.static:
            floats[name] = site.operands.value(name)
    return [*tables, floats, _scales(program)]


def _scales(program: Program) -> dict[str, Any]:
    """What converts between codes and reals, for every integer tensor."""
    where = "integer emulation"
    found = {}
    for name, grid in program.site.grids.items():
        scale, zero_point = per_tensor(grid, f"{where} of tensor {name!r}")
        assert isinstance(grid.format, Integer)
        low, high = grid.format.limits
        found[name] = {
            "scale": scale,
            "out": Out(np.int32(zero_point), np.int32(low), np.int32(high)),
        }
        if program.site.arithmetic.enter is not None:
            found[name]["enter"] = program.site.arithmetic.enter.prepare(scale)
    return found


def execute(
    program: Program,
    tables: list[Any],
    inputs: Mapping[str, Any],
    *,
    want: tuple[str, ...],
    integers: bool,
) -> dict[str, Any]:
    """The tensors `want` of a program with its tables: `lower`'s run, without its checks."""
    site, graph = program.site, program.site.operands.graph
    *steps, floats, scales = tables
    env: dict[str, Laid] = {}
    traced = next(iter(scales.values()))["out"].zero_point if scales else 0
    for name, value in inputs.items():
        laid = Laid(value)
        if name in site.grids:
            laid = _enter(program, name, to_last(laid), scales)
            laid = _kept(program, name, laid, traced)
        env[name] = laid
    for step, table in zip(program.steps, steps, strict=True):
        match step:
            case Group():
                values = [env.get(n) if n else None for n in step.head.inputs]
                codes = KERNELS[step.head.op].run(step, site, table, values)
                env[step.output] = _kept(program, step.output, codes, traced)
            case Move():
                for name, codes in _move(step, site, table, env):
                    env[name] = _kept(program, name, codes, traced)
            case _:
                values = [_real(program, n, env, floats, scales) for n in step.inputs]
                for name, value in zip(step.outputs, _float(step, site, values), strict=False):
                    if name:
                        env[name] = _enter(program, name, value, scales)
    results = {}
    for name in want:
        if name in site.operands.static and name not in env:
            env[name] = Laid(jnp.asarray(graph.constants.get(name, floats.get(name))))
        if integers and name in site.grids:
            grid = site.grids[name]
            dtype = storage_dtype(grid.format)
            dtype = (
                dtype
                if dtype.itemsize * 8 >= 8 and dtype.kind in "iu"
                else np.dtype(
                    "int8" if grid.format.signed else "uint8"  # pyright: ignore
                )
            )
            results[name] = true_codes(to_onnx(env[name]).array, grid).astype(dtype)
        else:
            value = _real(program, name, env, floats, scales)
            assert value is not None
            results[name] = to_onnx(value).array
    return results


def _float(node: Node, site: Site, values: list[Laid | None]) -> tuple[Laid, ...]:
    """A node in float32; backends that run all but products in float add up means in order."""
    if site.arithmetic.only_products and values[0] is not None:
        mean = float_mean(node, site, values[0])
        if mean is not None:
            return (mean,)
    return call(node, values)


def _kept(program: Program, name: str, codes: Laid, traced: Any) -> Laid:
    """The codes in memory, unless their one reader looks at each of them once anyway."""
    readers = program.site.operands.graph.readers.get(name, ())
    if len(readers) == 1 and readers[0].op in ("Gemm", "MatMul", "Conv"):
        weight = program.site.operands.coded(readers[0].inputs[1])
        if weight is not None and math.prod(weight.codes.shape[2:]) == 1:
            return codes
    return codes._replace(array=settled(codes.array, traced))


def _enter(program: Program, name: str, value: Laid, scales: Any) -> Laid:
    """A float result, on the grid or in the format that its tensor has."""
    encoding = program.encodings.tensors.get(name)
    array = value.array
    if encoding is None or isinstance(array, np.ndarray):
        return value
    if not isinstance(encoding.format, Integer):
        cast = quantizer_of(encoding)
        if value.last and (moved := last_quantizer(cast, array.ndim)) is not None:
            return value._replace(array=moved(array))
        return Laid(cast(to_onnx(value).array))
    if jnp.issubdtype(array.dtype, jnp.integer):
        codes = array.astype(jnp.int32)
    elif (rule := program.site.arithmetic.enter) is not None:
        codes = rule.apply(array, scales[name]["enter"], scales[name]["out"])
    else:
        codes = quantize_float(array, scales[name]["scale"], scales[name]["out"])
    return value._replace(array=store(codes, encoding))


def _real(program: Program, name: str, env: Any, floats: Any, scales: Any) -> Laid | None:
    """A tensor as a float operator reads it."""
    if not name:
        return None
    graph, grids = program.site.operands.graph, program.site.grids
    if name in graph.constants:
        return Laid(graph.constants[name])
    if name not in env:
        return Laid(jnp.asarray(floats[name]))
    value = env[name]
    if name not in grids:
        return value
    shift = true_codes(value.array, grids[name]) - scales[name]["out"].zero_point
    return value._replace(array=exact_mul(shift.astype(jnp.float32), scales[name]["scale"]))


def _move_table(step: Move, site: Site) -> dict[str, Any]:
    node, where = step.node, f"{step.node.op} {step.node.name!r}"
    x = site.grids[node.inputs[0]]
    assert isinstance(x.format, Integer)
    table: dict[str, Any] = {"zx": np.int32(per_tensor(x, where)[1] - container(x.format).shift)}
    for name in (n for n in node.outputs if n):
        y = site.grids[name]
        rule = rescaling(x, y, site, where)
        _, zero_point = per_tensor(y, where)
        out = Out(*(np.int32(v) for v in (zero_point, *y.format.limits)))  # pyright: ignore
        table[name] = {"rule": rule, "out": out}
    return table


def _move(
    step: Move, site: Site, table: Any, env: Mapping[str, Laid]
) -> Iterator[tuple[str, Laid]]:
    node = step.node
    values: list[Laid | None] = [
        (env[n] if n in env else Laid(site.operands.value(n))) if n else None for n in node.inputs
    ]
    if node.op == "Pad" and node.attrs.get("mode", "constant") == "constant":
        dtype = env[node.inputs[0]].array.dtype
        node, values = _pad_with(node, values, table["zx"].astype(dtype))
    x = site.grids[step.node.inputs[0]]
    turned = node.op == "MaxPool" and site.arithmetic.int8_pools
    if turned:
        values = [_sign_turned(values[0]), *values[1:]]
    for name, value in zip(node.outputs, call(node, values), strict=False):
        if name:
            value = _sign_turned(value) if turned else value
            y = site.grids[name]
            rule, out = table[name]["rule"], table[name]["out"]
            if rule is not None:
                value = value._replace(array=rescaled(value.array, x, y, rule, site, out))
            yield name, value


def _sign_turned(value: Any) -> Laid:
    """int8 codes plus 128, wrapped."""
    return value._replace(array=value.array ^ jnp.int8(-128))


def _pad_with(node: Node, values: list[Laid | None], zero: Any):
    """The node padding with the zero point instead of 0.0."""
    if node.since < 11:
        return node.replace(attrs={**node.attrs, "value": zero}), values
    rest = values[3:]
    return node, [*values[:2], Laid(zero), *rest]
