"""The aliases that signatures share."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

__all__ = ["Apply", "Array", "Leaf", "Params", "QParams", "Quantizer", "Symmetry"]

Array = jax.Array

Leaf = Any
"""A field of a pytree dataclass that holds arrays; `tree.map` may put anything there."""

Params = dict[str, Any]
"""ONNX tensor name -> array: the float constants of a graph, what a float model would train."""

Quantizer = Callable[[Any], Any]
"""A small pytree that can be called: float array -> float array of the same shape."""

QParams = Mapping[str, Quantizer]
"""ONNX tensor name -> quantizer; a tensor without an entry stays as it is."""

Symmetry = bool | Literal["one_sided"]
"""Whether zero is the middle code of a grid: yes, wherever the range puts it (False), or the middle
code unless no value is negative, in which case it is the lowest ("one_sided")."""

Apply = Callable[..., dict[str, Any]]
"""`apply(params, qparams, inputs, want=graph.outputs) -> {tensor name -> array}`."""
