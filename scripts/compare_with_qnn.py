#!/usr/bin/env python3
"""Compares a quantized model with Qualcomm's HTP simulator, which is taken as a black box.

compare_with_qnn.py FOLDER DATA.npz [--htp-arch 73] [--samples 8]

FOLDER is what `jqnt quantize --out` left. Its QDQ model runs on the simulator and on onnxruntime's
CPU in float; each output is a row: the largest difference in codes, and the share of codes that
differ. The bar, 1 code, holds for single uint8 operators; whole models add up their operators'.
Needs onnxruntime-qnn, which comes with a licence of its own and is no dependency. Nothing of jqnt
is fitted to what it computes.
"""

import argparse
import importlib
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

from jqnt.data import load_data
from jqnt.errors import JqntError
from jqnt.formats import Integer
from jqnt.frozen import load_frozen
from jqnt.interop.onnx_qdq import to_qdq
from jqnt.steps import steps_between

_PROVIDER = "QNNExecutionProvider"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("data")
    parser.add_argument("--htp-arch", default="73", help="the simulator's rounding differs by it")
    parser.add_argument("--samples", type=int, default=8)
    options = parser.parse_args()
    if options.samples < 1:
        parser.error(f"at least one sample is compared, not {options.samples}")
    try:
        plugin = importlib.import_module("onnxruntime_qnn")
    except ImportError as error:
        print(
            f"error: onnxruntime-qnn cannot be imported ({error}); install it first",
            file=sys.stderr,
        )
        return 2
    try:
        model = load_frozen(options.folder)
        data = load_data(options.data, model.graph, batch_size=1)
    except JqntError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ort.register_execution_provider_library(_PROVIDER, plugin.get_library_path())
    settings = {"backend_type": "htp", "htp_arch": options.htp_arch}
    kept = [batch for batch, _ in zip(data, range(options.samples), strict=False)]
    feeds = [{n: np.asarray(batch[n]) for n in model.graph.inputs} for batch in kept]
    exported = to_qdq(model.graph, model.params, model.encodings)
    for info in exported.graph.input:  # the simulator takes no symbolic sizes
        for dim, size in zip(
            info.type.tensor_type.shape.dim, feeds[0][info.name].shape, strict=True
        ):
            dim.dim_value = size
    content = exported.SerializeToString()
    sessions = _float(content), _simulator(content, settings)
    pairs = [[session.run(None, feed) for feed in feeds] for session in sessions]
    worst = 0
    for i, name in enumerate(model.graph.outputs):
        encoding = model.encodings.tensors.get(name)
        ours, theirs = (np.concatenate([np.asarray(run[i]) for run in runs]) for runs in pairs)
        if encoding is None or not isinstance(encoding.format, Integer):
            print(f"{name:32} float: largest difference {np.abs(ours - theirs).max():.3g}")
            continue
        steps = steps_between(ours, theirs, encoding)
        worst = max(worst, steps.most)
        print(f"{name:32} {encoding.format.name:6} most {steps.most} codes (bar 1), ", end="")
        print(f"{100 * steps.one:.2f} % differ")
    return int(worst > 1)


def _float(content: bytes) -> ort.InferenceSession:
    """onnxruntime's CPU with no graph optimization, so that quantizers stay float operators."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _simulator(content: bytes, settings: dict[str, str]) -> ort.InferenceSession:
    """All nodes on the simulator, or an error of onnxruntime that says which are not."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    devices = [device for device in ort.get_ep_devices() if device.ep_name == _PROVIDER]
    settings = {**settings, "offload_graph_io_quantization": "0"}
    options.add_provider_for_devices(devices, settings)
    return ort.InferenceSession(content, options)


if __name__ == "__main__":
    sys.exit(main())
