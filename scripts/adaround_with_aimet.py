#!/usr/bin/env python3
"""Runs aimet-onnx's AdaRound on one model; for the environment that scripts/peers makes.

adaround_with_aimet.py MODEL DATA.npz OUT.npz ITERATIONS  (DATA: calib; the input is called input)

int4 weights with a scale per channel, 8-bit activations, min-max ranges. OUT holds the weights as
they were rounded, by name; a JSON object on stdout says how long AdaRound itself took.
"""

import contextlib
import json
import logging
import os
import sys
import time

import aimet_onnx
import numpy as np
import onnx
from aimet_onnx.adaround.adaround_weight import Adaround
from aimet_onnx.quantsim import QuantizationSimModel
from onnx import numpy_helper


def on_grid(w: np.ndarray, quantizer) -> np.ndarray:
    """What its simulator makes of a weight: the file has it with the soft rounding."""
    info, encodings = quantizer.quant_info, quantizer.encodings
    shape = [1] * w.ndim
    if info.usePerChannelMode:
        shape[info.channelAxis] = len(encodings)
    delta, offset = (
        np.array([getattr(e, field) for e in encodings]).reshape(shape)
        for field in ("delta", "offset")
    )
    code = np.clip(np.rint(w / delta), offset, offset + 2**quantizer.bitwidth - 1)
    return (code * delta).astype(np.float32)


def main() -> int:
    path, data, out, iterations = sys.argv[1:5]
    with np.load(data) as file:
        calib = file["calib"]
    settings = os.path.join(
        os.path.dirname(aimet_onnx.__file__),
        "common",
        "quantsim_config",
        "default_config_per_channel.json",
    )
    batches = [{"input": calib[i : i + 64]} for i in range(0, len(calib), 64)]
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(sys.stderr):
        sim = QuantizationSimModel(
            onnx.load(path),
            param_type="int4",
            activation_type="int8",
            quant_scheme="min_max",
            config_file=settings,
            providers=["CPUExecutionProvider"],
        )
        sim.compute_encodings(batches)
        start = time.perf_counter()
        Adaround.apply_adaround(sim, batches, num_iterations=int(iterations))
        seconds = time.perf_counter() - start
    rounded = {
        tensor.name: on_grid(numpy_helper.to_array(tensor), sim.qc_quantize_op_dict[tensor.name])
        for tensor in sim.model.model.graph.initializer
        if tensor.name in sim.param_names and len(tensor.dims) > 1
    }
    np.savez(out, **rounded)
    version = getattr(aimet_onnx, "__version__", "")
    print(json.dumps({"seconds": seconds, "layers": len(rounded), "version": version}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
