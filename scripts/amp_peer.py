#!/usr/bin/env python3
"""AIMET-ONNX's automatic mixed precision on one model; prints JSON. Runs in `.venv-peers`.

amp_peer.py MODEL.onnx DATA.npz [--drop POINTS]

DATA holds calib, labels (of calib), eval and eval_labels. The candidates are W4A8, W8A8 and W8A16,
weights per channel; phase 2 stops when the accuracy on the calibration set is within --drop
points of the float model's there.
"""

import argparse
import contextlib
import json
import logging
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--drop", type=float, default=1.0)
    args = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        found = run(args.model, dict(np.load(args.data)), args.drop)
    print(json.dumps(found))
    return 0


def run(path: Path, data: dict[str, np.ndarray], drop: float) -> dict[str, object]:
    import aimet_onnx
    from aimet_onnx.mixed_precision import analyze_mixed_precision_sensitivity, apply_amp
    from aimet_onnx.quantsim import QuantizationSimModel

    logging.disable(logging.WARNING)
    model = onnx.load(path)
    name = model.graph.input[0].name

    def top1(session, images, labels) -> float:
        parts = [
            session.run(None, {name: images[i : i + 128]})[0] for i in range(0, len(images), 128)
        ]
        return 100 * float((np.concatenate(parts).argmax(1) == labels).mean())

    plain = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    goal = top1(plain, data["calib"], data["labels"]) - drop
    inputs = [{name: data["calib"][i : i + 128]} for i in range(0, len(data["calib"]), 128)]
    begin = time.perf_counter()
    sim = QuantizationSimModel(
        model, param_type="int4", activation_type="int8", config_file="default",
        providers=["CPUExecutionProvider"],
    )  # fmt: skip
    precisions = [("int4", "int8"), ("int8", "int8"), ("int8", "int16")]
    table = analyze_mixed_precision_sensitivity(
        sim, precisions, lambda s: top1(s, data["calib"], data["labels"]), inputs
    )
    apply_amp(sim, table, lambda s: top1(s, data["calib"], data["labels"]) >= goal)
    seconds = time.perf_counter() - begin

    def bits(names) -> dict[str, int]:
        found = {n: sim.qc_quantize_op_dict.get(n) for n in names}
        return {n: int(q.bitwidth) for n, q in found.items() if q is not None and q.enabled}

    return {
        "version": getattr(aimet_onnx, "__version__", ""),
        "seconds": seconds,
        "accuracy": top1(sim.session, data["eval"], data["eval_labels"]),
        "goal": goal,
        "weights": bits(sim.param_names),
        "activations": bits(sim.activation_names),
    }


if __name__ == "__main__":
    sys.exit(main())
