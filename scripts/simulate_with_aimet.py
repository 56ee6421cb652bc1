#!/usr/bin/env python3
"""Runs aimet-onnx's simulator on one model; for the environment that scripts/peers makes.

simulate_with_aimet.py MODEL DATA.npz  (arrays calib, x, labels; the input is called input)

Prints a JSON object: top-1 of the W8A8 simulation (default configuration, one scale per tensor,
min-max), and the median milliseconds of a batch of 64 in it and in onnxruntime's float session.
"""

import json
import os
import statistics
import sys
import time

import aimet_onnx
import numpy as np
import onnx
import onnxruntime as ort
from aimet_onnx.quantsim import QuantizationSimModel


def main() -> int:
    path, data = sys.argv[1:3]
    with np.load(data) as file:
        calib, x, labels = file["calib"], file["x"], file["labels"]
    settings = os.path.join(
        os.path.dirname(aimet_onnx.__file__), "common", "quantsim_config", "default_config.json"
    )
    sim = QuantizationSimModel(
        onnx.load(path),
        param_type="int8",
        activation_type="int8",
        quant_scheme="min_max",
        config_file=settings if os.path.exists(settings) else None,
    )
    sim.compute_encodings([{"input": calib[i : i + 64]} for i in range(0, len(calib), 64)])
    logits = [sim.session.run(None, {"input": x[i : i + 64]})[0] for i in range(0, len(x), 64)]
    found = 100 * float((np.concatenate(logits).argmax(1) == labels).mean())
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    plain = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    batch = {"input": x[:64]}
    times = {"sim": [], "float": []}
    for _ in range(15):
        for kind, session in (("sim", sim.session), ("float", plain)):
            start = time.perf_counter()
            session.run(None, batch)
            times[kind].append(1e3 * (time.perf_counter() - start))
    medians = {f"{kind}_ms": statistics.median(spent[3:]) for kind, spent in times.items()}
    print(json.dumps({"top1": found, "config": os.path.exists(settings), **medians}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
