"""The node cases of onnx's own backend suite, a few per operator."""

import warnings
from functools import lru_cache

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests

from jqnt.graph.onnx_import import import_onnx
from jqnt.graph.session import session
from jqnt.ops import (
    activations,
    attention,
    blocks,
    cast,
    control_flow,
    data_dependent,
    elementwise,
    generate,
    indexing,
    integer_products,
    linear,
    losses,
    normalization,
    pooling,
    quantized,
    recurrent,
    reduce,
    resize,
    sampling,
    scatter,
    selection,
    shaping,
    signal,
    softmax,
    tensor,
)
from jqnt.ops.registry import _TABLE

FAMILIES = (
    activations, attention, blocks, cast, control_flow, data_dependent, elementwise, generate,
    indexing, integer_products, linear, losses, normalization, pooling, quantized, recurrent,
    reduce, resize, sampling, scatter, selection, shaping, signal, softmax, tensor,
)  # fmt: skip

OUT_OF_SCOPE = ("string", "sequence", "_opt", "_seq", "training_dropout")
"""Strings, sequences, optionals, randomness."""

MOST = 4
"""Cases per operator."""


@lru_cache(1)
def cases():
    """Operator -> its cases; those of function bodies are left to the suite itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    by_op = {}
    for case in found:
        ops = {node.op_type for node in case.model.graph.node}
        if len(ops) == 1 and "_expanded" not in case.name:
            by_op.setdefault(ops.pop(), []).append(case)
    return by_op


def operators():
    names = {family.__name__ for family in FAMILIES}
    return sorted(
        {
            op
            for (domain, op), entries in _TABLE.items()
            if not domain and any(entry.function.__module__ in names for entry in entries)
        }
    )


def plain(array):
    return array.astype(np.float64) if array.dtype.kind == "V" else array


def array_of(value):
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


@pytest.mark.parametrize("op", operators())
def test_node_cases_of_the_backend_suite(op):
    inside = [
        case
        for case in cases().get(op, [])
        if not any(word in case.name for word in OUT_OF_SCOPE) or op == "ReverseSequence"
    ]
    # evenly spread; the whole suite is for the script that makes the table of operators
    for case in inside[:: -(-len(inside) // MOST) or 1]:
        graph, params, _ = import_onnx(case.model)
        run = session(graph, params)
        for inputs, expected in case.data_sets:
            results = run(params, {}, dict(zip(graph.inputs, map(array_of, inputs), strict=True)))
            for name, value in zip(graph.outputs, expected, strict=True):
                ours, wanted = np.asarray(results[name]), array_of(value)
                assert ours.dtype == wanted.dtype, case.name
                assert ours.shape == wanted.shape, case.name
                loose = 2**-6 if wanted.dtype.name == "bfloat16" else case.rtol
                np.testing.assert_allclose(
                    plain(ours), plain(wanted), rtol=max(loose, case.rtol), atol=case.atol,
                    err_msg=case.name,
                )  # fmt: skip
