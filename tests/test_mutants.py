"""Broken relatives of real files: each gives onnxruntime's answer or one clear error."""

import resource

import numpy as np
import onnxruntime as ort
import pytest
from mutants import mutants

from jqnt.errors import JqntError
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx

SIZES = {"sequence": 576}
SCALARS = {"sr": 16000}
BUDGET_MB = 2000


def inputs_of(graph, rng):
    """Values for the inputs that the mutant declares; None where it declares nothing sensible."""
    inputs = {}
    for name in graph.inputs:
        info = graph.info.get(name)
        if info is None or info.shape is None or info.dtype.kind not in "fiub":
            return None
        shape = [d if isinstance(d, int) else SIZES.get(d, 2) for d in info.shape]
        if np.prod(np.array(shape, float)) > 1e5:
            return None
        value = rng.normal(size=shape) if name not in SCALARS else np.full(shape, SCALARS[name])
        inputs[name] = value.astype(info.dtype)
    return inputs


def check(content: bytes, rng) -> str:
    """What became of a mutant: "refused", "right" or "unchecked"; anything else raises."""
    try:
        graph, params, _ = import_onnx(content)
        inputs = inputs_of(graph, rng)
        if inputs is None:
            return "unchecked"
        results = lower(graph)(params, {}, inputs)
    except JqntError as error:
        assert str(error) and "\n" not in str(error)
        return "refused"
    try:
        session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        expected = session.run(None, inputs)
    except Exception:
        # onnxruntime refuses what we can compute: nothing to compare with
        return "unchecked"
    for name, theirs in zip(graph.outputs, expected, strict=True):
        ours = np.asarray(results[name])
        assert ours.shape == theirs.shape
        if np.isfinite(theirs).all():
            scale = np.abs(theirs).max(initial=0)
            np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-3 * scale + 1e-30)
    return "right"


def run(content, count, seed):
    ort.set_default_logger_severity(4)
    rng = np.random.default_rng(seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fates = [check(mutant, rng) for mutant in mutants(content, count, seed)]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < BUDGET_MB, f"the peak grew by {grown:.0f} MB"
    return {fate: fates.count(fate) for fate in ("refused", "right", "unchecked")}


def test_some_mutants(data):
    content = (data / "models" / "digits_resnet8_folded.onnx").read_bytes()
    fates = run(content, 200, seed=1)
    assert fates["refused"] > 50 and fates["right"] > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [("digits_resnet8_folded", 4200), ("digits_mbv2_bn", 500), ("silero_vad_16k", 350)],
)
def test_five_thousand_mutants(data, name, count):
    fates = run((data / "models" / f"{name}.onnx").read_bytes(), count, seed=5)
    assert fates["refused"] > count // 10 and fates["right"] > count // 50
