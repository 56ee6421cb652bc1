"""What integer kernels read beside activations: weight codes, biases, bounds, as numpy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import DataError, UnsupportedError, nearest
from jqnt.formats import Integer
from jqnt.graph.ir import Graph, Node
from jqnt.graph.lower import run_node
from jqnt.graph.match import static_tensors
from jqnt.graph.shapes import infer_shapes
from jqnt.lpbq import factor
from jqnt.thaw import quantizer_of

__all__ = ["Coded", "Operands"]

_MOVES = frozenset({"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, eq=False)
class Coded:
    """Integer codes of a static tensor; scale and zero point have its shape."""

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    format: Integer

    def per_channel(self, axis: int, where: str) -> np.ndarray:
        """One float32 scale per index of `axis`; UnsupportedError where it varies inside one."""
        rows = np.moveaxis(self.scale, axis, 0).reshape(self.scale.shape[axis], -1)
        if (rows != rows[:, :1]).any():
            raise UnsupportedError(
                f"{where}: its scale varies along the summed axes (blocks, or another axis than "
                f"the output channels), which this kernel cannot take"
            )
        return rows[:, 0]

    def channels(self, axis: int, where: str) -> tuple[np.ndarray, np.ndarray]:
        """(codes less zero point, one float32 scale per index of `axis`).

        Block scales that are a number per channel times small integers (LPBQ) go into the codes,
        which keeps the product whole: code * multiple, at most 8 bits. UnsupportedError for other
        scales that vary inside a channel.
        """
        rows = np.moveaxis(self.scale, axis, 0).reshape(self.scale.shape[axis], -1)
        if (rows == rows[:, :1]).all():
            return self.centred, rows[:, 0]
        try:
            channel, multiples = factor(self.scale, axis % self.scale.ndim, "its weight")
        except UnsupportedError:
            return self.centred, self.per_channel(axis, where)
        return self.centred * multiples, channel.reshape(-1)

    @property
    def centred(self) -> np.ndarray:
        """int64 codes less their zero point."""
        return self.codes - self.zero_point


@dataclass(frozen=True, eq=False)
class Operands:
    """The static tensors of a graph under its encodings; values are computed once."""

    graph: Graph
    params: Mapping[str, Any]
    encodings: Encodings
    _values: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    _codes: dict[str, Coded | None] = field(default_factory=dict, repr=False)

    @cached_property
    def static(self) -> frozenset[str]:
        """The tensors that depend on no input."""
        return static_tensors(self.graph)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor for a batch of one."""
        found = infer_shapes(self.graph, self.params)
        return {name: tuple(value.shape) for name, value in found.items()}

    def coded(self, name: str) -> Coded | None:
        """The codes of a static tensor that has an integer encoding, moved as the graph moves
        it; None where it has none, and for tensors that are computed from inputs."""
        if name not in self.static:
            return None
        if name not in self._codes:
            self._codes[name] = self._coded(name)
        return self._codes[name]

    def _coded(self, name: str) -> Coded | None:
        encoding = self.encodings.tensors.get(name)
        if encoding is not None and isinstance(encoding.format, Integer):
            return self._encode(name, encoding)
        node = self.graph.producer.get(name)
        if node is None or node.op not in _MOVES or encoding is not None:
            return None
        source = self.coded(node.inputs[0])
        if source is None:
            return None
        rest = [self.value(n) if n else None for n in node.inputs[1:]]
        parts = (source.codes, source.scale, source.zero_point)
        codes, scale, zero_point = (run_node(node, [part, *rest])[0] for part in parts)
        return Coded(codes, scale, zero_point, source.format)

    def value(self, name: str) -> np.ndarray:
        """The real value of a static tensor, on its grid if it has one."""
        if name not in self._values:
            self._values[name] = self._value(name)
        return self._values[name]

    def bias_codes(self, name: str | None, scale: np.ndarray) -> np.ndarray:
        """int64 codes at `scale` (one per output) of a bias vector; zeros without a bias."""
        if name is None:
            return np.zeros(np.shape(scale), np.int64)
        encoding = self.encodings.tensors.get(name)
        if encoding is not None and encoding.scale is not None:
            own = np.broadcast_to(encoding.expand(encoding.scale, np.shape(scale)), scale.shape)
            if np.array_equal(own, scale):
                coded = self._encode(name, encoding)
                return coded.centred.reshape(-1)
        real = self.value(name).astype(np.float64).reshape(-1)
        return np.rint(np.broadcast_to(real, scale.shape) / scale.astype(np.float64)).astype(
            np.int64
        )

    def _encode(self, name: str, encoding: Encoding) -> Coded:
        assert isinstance(encoding.format, Integer)
        assert encoding.scale is not None and encoding.zero_point is not None
        codes = self.encodings.codes.get(name)
        if codes is None:
            codes = encoding.quantize(self._raw(name))
        shape = codes.shape
        grids = (encoding.expand(v, shape) for v in (encoding.scale, encoding.zero_point))
        scale, zero_point = (np.broadcast_to(g, shape) for g in grids)
        return Coded(codes.astype(np.int64), scale, zero_point, encoding.format)

    def _value(self, name: str) -> np.ndarray:
        encoding = self.encodings.tensors.get(name)
        if encoding is None:
            return self._raw(name)
        if isinstance(encoding.format, Integer):
            return encoding.dequantize(self._encode(name, encoding).codes)
        return np.asarray(quantizer_of(encoding)(jnp.asarray(self._raw(name))))

    def _raw(self, name: str) -> np.ndarray:
        if name in self.graph.constants:
            return self.graph.constants[name]
        if name in self.graph.producer:
            node = self.graph.producer[name]
            return self._computed(node)[node.outputs.index(name)]
        if name not in self.params:
            raise DataError(f"no value for parameter {name!r}{nearest(name, self.params)}")
        return np.asarray(self.params[name])

    def _computed(self, node: Node) -> tuple[Any, ...]:
        values = [self.value(n) if n else None for n in node.inputs]
        return tuple(np.asarray(v) for v in run_node(node, values))
