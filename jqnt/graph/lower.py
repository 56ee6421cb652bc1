"""The interpreter: `lower(graph) -> apply`, one pure function of params, quantizers and inputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import ensure_compile_time_eval
from jax.core import Tracer

import jqnt.ops  # noqa: F401  (its import fills the table of lowerings)
from jqnt.errors import ConfigError, DataError, JqntError, ModelError, nearest
from jqnt.graph.claims import check_memory, check_result
from jqnt.graph.concrete import shape_inputs
from jqnt.graph.ir import Graph, Node, captured
from jqnt.graph.layout import RENAMED, Laid, align, last_quantizer, to_last, to_onnx
from jqnt.graph.precision import fits_32_bits
from jqnt.ops.registry import Lowering, find
from jqnt.types import Apply

__all__ = ["Compute", "call", "checked_input", "lower", "run_node", "shape_inputs"]


Compute = Callable[[Node, list[Laid | None]], tuple[Laid, ...]]
"""How one node is computed on laid arrays; by default `call`."""


def lower(
    graph: Graph,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    *,
    compute: Compute | None = None,
) -> Apply:
    """`apply(params, qparams, inputs, want=outputs) -> {tensor name -> array}`, pure.

    `inputs` and `outputs` (by default the graph's) may be any tensors: the function then costs
    what lies between them. A tensor in `qparams` is quantized where it comes into being: as an
    input (of the cut, too), a parameter or a node's output. `want` may name any tensor on the
    way. Matrix products and convolutions are float32 on every platform unless the caller sets
    `jax.default_matmul_precision`. Inputs in `shape_inputs(graph)` must be concrete; the others
    may be traced. `compute` takes the place of `call`, for another arithmetic in some nodes.

    Raises ConfigError for tensors that the graph does not have, or that the inputs do not
    determine; `apply` raises DataError for inputs of the wrong name, shape or type, and
    ModelError, naming the node, where an operator refuses its operands.
    """
    given = tuple(graph.inputs if inputs is None else inputs)
    wanted = tuple(graph.outputs if outputs is None else outputs)
    for name in (*given, *wanted):
        graph.check(name)
    known = frozenset(graph.tensors)
    concrete = frozenset(shape_inputs(graph))

    @lru_cache(maxsize=64)
    def steps(want: tuple[str, ...]) -> tuple[tuple[Node, ...], tuple[str, ...]]:
        return _between(graph, given, want)

    steps(wanted)

    def apply(
        params: Mapping[str, Any],
        qparams: Mapping[str, Any],
        inputs: Mapping[str, Any],
        want: Iterable[str] = wanted,
    ) -> dict[str, Any]:
        want = tuple(want)
        for name in (*want, *qparams):
            if name not in known:
                raise ConfigError(
                    f"no tensor {name!r} in graph {graph.name!r}{nearest(name, known)}"
                )
        nodes, leaves = steps(want)
        env: dict[str, Laid] = {}
        sizes: dict[str, int] = {}
        for name in leaves:
            if name in graph.constants:
                env[name] = Laid(graph.constants[name])
                continue
            if name in given:
                value = checked_input(graph, name, inputs, name in concrete, sizes)
            elif name in params:
                value = jnp.asarray(params[name])
            else:
                raise DataError(f"no value for parameter {name!r}{nearest(name, params)}")
            env[name] = _quantize(qparams, name, Laid(value))
        held = sum(np.size(leaf.array) for leaf in env.values())
        with _full_float32():
            _run(nodes, env, qparams, compute or partial(call, held=held))
        for name in want:
            _check_output(graph, name, env[name], sizes)
        return {name: to_onnx(env[name]).array for name in want}

    return apply


def _full_float32() -> AbstractContextManager[Any]:
    """Products in float32 where nobody asked for less: GPUs would take TF32, TPUs bfloat16, and
    codes that depend on the last bits would depend on the machine."""
    if jax.config.jax_default_matmul_precision is None:  # pyright: ignore[reportAttributeAccessIssue]
        return jax.default_matmul_precision("highest")
    return nullcontext()


def run_node(node: Node, values: Sequence[Any], held: int | None = None) -> tuple[Any, ...]:
    """One node on arrays in ONNX's layout, None for an absent input; `held` as of `call`."""
    laid = [None if value is None else Laid(value) for value in values]
    return tuple(to_onnx(out).array for out in call(node, laid, held))


def _between(
    graph: Graph, given: tuple[str, ...], want: tuple[str, ...]
) -> tuple[tuple[Node, ...], tuple[str, ...]]:
    """The nodes on the way from `given` to `want` in order, and the tensors they start from."""
    needed, stop = set(want), set(given)
    nodes = []
    for node in reversed(graph.nodes):
        if any(out in needed and out not in stop for out in node.outputs):
            nodes.append(node)
            needed.update(name for name in (*node.inputs, *captured(node)) if name)
    made = {out for node in nodes for out in node.outputs if out not in stop}
    leaves = [name for name in graph.tensors if name in needed and name not in made]
    for name in leaves:
        if name in graph.inputs and name not in stop:
            raise ConfigError(
                f"tensors {list(want)} depend on graph input {name!r} past the inputs "
                f"{list(given)}; name a tensor on that path too"
            )
    return tuple(reversed(nodes)), tuple(leaves)


def _run(
    nodes: Sequence[Node], env: dict[str, Laid], qparams: Mapping[str, Any], compute: Compute
) -> None:
    for node in nodes:
        values = [env[name] if name else None for name in node.inputs]
        results = compute(_bound(node, env, qparams, compute), values)
        if len(results) < sum(map(bool, node.outputs)):
            raise ModelError(
                f"{node.op} node {node.name!r} names {len(node.outputs)} outputs, it has "
                f"{len(results)}"
            )
        for name, value in zip(node.outputs, results, strict=False):
            if name and name not in env:
                env[name] = _quantize(qparams, name, value)


def _quantize(qparams: Mapping[str, Any], name: str, value: Laid) -> Laid:
    """The one line where quantization happens."""
    if name not in qparams:
        return value
    if value.last and (quantizer := last_quantizer(qparams[name], value.array.ndim)) is not None:
        return Laid(quantizer(value.array), True)
    return Laid(qparams[name](jnp.asarray(to_onnx(value).array)))


def _bound(node: Node, env: dict[str, Laid], qparams: Mapping[str, Any], compute: Compute) -> Node:
    """The node with functions in place of its bodies."""
    bodies = {k: v for k, v in node.attrs.items() if isinstance(v, Graph)}
    if not bodies:
        return node

    def function(body: Graph) -> Callable[..., tuple[Any, ...]]:
        def run(*arrays: Any) -> tuple[Any, ...]:
            inner = dict(env)
            for name, array in zip(body.inputs, arrays, strict=True):
                inner[name] = _quantize(qparams, name, Laid(array))
            _run(body.nodes, inner, qparams, compute)
            return tuple(to_onnx(inner[name]).array for name in body.outputs)

        return run

    return node.replace(attrs={**node.attrs, **{k: function(v) for k, v in bodies.items()}})


def call(node: Node, values: list[Laid | None], held: int | None = None) -> tuple[Laid, ...]:
    """One node on laid arrays, in the layout that suits it; ModelError names a node that fails.

    `held` counts the elements that the whole computation starts from: what a result may not
    exceed beyond reason. None stands for the node's own operands.
    """
    entry = find(node)
    last = any(v is not None and v.last for v in values)
    first_last = out_last = False
    if entry.layout == "elementwise":
        arrays, out_last = align(values)
    elif entry.layout == "channels_last" and values and values[0] is not None:
        data = to_last(values[0])
        arrays = [data.array, *(None if v is None else to_onnx(v).array for v in values[1:])]
        first_last = data.last
    else:
        renamed = None
        if last and not node.domain and node.op in RENAMED:
            renamed = RENAMED[node.op](node, values)
        if renamed is not None:
            node, arrays, out_last = renamed
        else:
            arrays = [None if v is None else to_onnx(v).array for v in values]
    _check_narrowing(entry, node, arrays)
    results = _guarded(entry.function, node, arrays, held)
    return tuple(
        Laid(r, (out_last or (first_last and i == 0)) and np.ndim(r) >= 3)
        for i, r in enumerate(results)
    )


def _check_narrowing(entry: Lowering, node: Node, arrays: Sequence[Any]) -> None:
    """jax cuts integers beyond 32 bits without a word."""
    if jax.config.jax_enable_x64 or all(a is None or isinstance(a, np.ndarray) for a in arrays):  # pyright: ignore[reportAttributeAccessIssue]
        return
    for i, (name, array) in enumerate(zip(node.inputs, arrays, strict=False)):
        concrete = i in entry.static or i in entry.settings
        if isinstance(array, np.ndarray) and not concrete and not fits_32_bits(array):
            raise ModelError(
                f"{node.op} node {node.name!r} computes with {name!r}, whose values need 64 bits: "
                f"run the graph through its session, or inside `with jax.enable_x64(True):`"
            )


def _guarded(
    function: Callable[..., Any], node: Node, arrays: list[Any], held: int | None
) -> tuple[Any, ...]:
    """Calls a lowering; whatever it raises on operands that do not fit names the node.

    What is computed from numpy alone becomes numpy again, inside a trace too.
    """
    static = all(a is None or isinstance(a, np.ndarray) for a in arrays) and not any(
        callable(a) for a in node.attrs.values()
    )
    try:
        with np.errstate(all="ignore"), ensure_compile_time_eval() if static else nullcontext():
            check_memory(function, node, arrays, held)
            results = function(node, *arrays)
            results = tuple(results) if isinstance(results, tuple | list) else (results,)
            check_result(node, results, arrays, held)
            return tuple(map(np.asarray, results)) if static else results
    except JqntError:
        raise
    except Exception as error:
        # A broken model can make an operator fail in any way that numpy or jax knows.
        operands = ", ".join(
            "absent" if a is None else f"{a.dtype}{list(np.shape(a))}" for a in arrays
        )
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{node.op} node {node.name!r} cannot take its inputs ({operands}): {text}"
        ) from error


def checked_input(
    graph: Graph, name: str, inputs: Mapping[str, Any], concrete: bool, sizes: dict[str, int]
) -> Any:
    """The array for an input, checked against what the graph declares; fills `sizes`."""
    if name not in inputs:
        raise DataError(f"no value for input {name!r}{nearest(name, inputs)}")
    value = inputs[name]
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        value = np.asarray(value)
    info = graph.info.get(name)
    if info is not None and info.shape is not None:
        if len(value.shape) != len(info.shape):
            raise DataError(
                f"input {name!r} has shape {list(value.shape)}, the model takes {_dims(info.shape)}"
            )
        for axis, (size, dim) in enumerate(zip(value.shape, info.shape, strict=True)):
            expected = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
            if expected is not None and size != expected:
                raise DataError(
                    f"input {name!r} has size {size} on axis {axis}, the model takes {expected} "
                    f"({_dims(info.shape)})"
                )
    if info is not None and not _kind_fits(value.dtype, info.dtype):
        raise DataError(f"input {name!r} is of type {value.dtype}, the model takes {info.dtype}")
    if concrete and not isinstance(value, Tracer):
        return np.asarray(value)
    return jnp.asarray(value)


def _kind_fits(found: np.dtype, declared: np.dtype) -> bool:
    """Floats for floats, integers for integers, truth values for truth values."""
    kinds = (jnp.floating, jnp.integer, jnp.bool_, jnp.complexfloating)
    return any(jnp.issubdtype(found, k) and jnp.issubdtype(declared, k) for k in kinds)


def _check_output(graph: Graph, name: str, value: Laid, sizes: Mapping[str, int]) -> None:
    """A shape other than the declared one means that the graph cannot take this input size."""
    info = graph.info.get(name)
    if name not in graph.outputs or info is None or info.shape is None:
        return
    shape = np.shape(to_onnx(value).array)
    declared = [sizes.get(d) if isinstance(d, str) else d for d in info.shape]
    fits = len(shape) == len(declared) and all(
        d is None or d == s for d, s in zip(declared, shape, strict=True)
    )
    if not fits:
        node = graph.producer.get(name)
        made_by = f" of {node.op} node {node.name!r}" if node else ""
        raise ModelError(
            f"output {name!r}{made_by} has shape {list(shape)}, the model declares "
            f"{_dims(info.shape)}: the graph cannot take inputs of this size"
        )


def _dims(shape: Sequence[int | str | None]) -> str:
    return f"[{', '.join('?' if d is None else str(d) for d in shape)}]"
