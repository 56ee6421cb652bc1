"""Models that we write, run in the backends of .venv-oracles: a process for each call."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from jqnt.encodings import Encoding, Encodings
from jqnt.graph.ir import Graph
from jqnt.integer import lower
from jqnt.interop.mnn import to_mnn
from jqnt.interop.ncnn_model import Layer, dump_bin, dump_param
from jqnt.interop.tflite import to_tflite

__all__ = ["LITERT", "litert_pair", "mnn_outputs", "ncnn_outputs"]

LITERT = {"ref": "tflite-reference", "auto": "xnnpack"}
"""LiteRT's choice of kernels -> our arithmetic."""


def litert_pair(
    oracle: Path,
    folder: Path,
    model: tuple[Graph, Mapping[str, Any], Encodings],
    images: np.ndarray,
    kernels: str,
    batch: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes, channels last, of a model with one input and one output: (ours, LiteRT's)."""
    graph, _, encodings = model
    (name,), (result,) = graph.inputs, graph.outputs
    (folder / "m.tflite").write_bytes(to_tflite(*model, batch=batch or len(images)))
    np.save(folder / "x.npy", _last(_int8(encodings[name].quantize(images), encodings[name])))
    theirs = _run(oracle, folder, "oracle_tflite.py", ["m.tflite", "x.npy", "y.npy", kernels])
    ours = np.asarray(lower(*model, LITERT[kernels])({name: images}, integers=True)[result])
    return _last(_int8(ours, encodings[result])), theirs


def mnn_outputs(
    oracle: Path,
    folder: Path,
    model: tuple[Graph, Mapping[str, Any], Encodings],
    inputs: np.ndarray,
) -> np.ndarray:
    """What MNN makes of the model and its compression parameters."""
    proto, document = to_mnn(*model)
    onnx.save(proto, folder / "m.onnx")
    (folder / "m.json").write_text(json.dumps(document))
    np.save(folder / "x.npy", inputs)
    return _run(oracle, folder, "oracle_mnn.py", ["m.onnx", "m.json", "x.npy", "y.npy"])


def ncnn_arithmetic() -> str:
    """Whose kernels ncnn takes on this processor."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "ncnn" if "avx512bw" in flags else "ncnn-avx2"


def ncnn_outputs(
    oracle: Path,
    folder: Path,
    layers: Sequence[Layer],
    inputs: np.ndarray,
    entry: str,
    result: str,
) -> np.ndarray:
    """The blob `result` of ncnn's layers."""
    (folder / "m.param").write_text(dump_param(layers))
    (folder / "m.bin").write_bytes(dump_bin(layers))
    np.save(folder / "x.npy", inputs)
    words = ["m.param", "m.bin", "x.npy", "y.npy", entry, result]
    return _run(oracle, folder, "oracle_ncnn.py", words)


def _run(oracle: Path, folder: Path, program: str, words: Sequence[str]) -> np.ndarray:
    command = [oracle, Path(__file__).with_name(program), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(folder / "y.npy")


def _int8(codes: np.ndarray, encoding: Encoding) -> np.ndarray:
    signed = encoding.format.signed  # pyright: ignore[reportAttributeAccessIssue]
    return (codes.astype(int) - (0 if signed else 128)).astype(np.int8)


def _last(codes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(codes.transpose(0, 2, 3, 1)) if codes.ndim == 4 else codes
