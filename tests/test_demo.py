"""The shipped model and data: whole, small, and as accurate in onnxruntime as they claim."""

import numpy as np
import onnx
import onnxruntime

from jqnt.data import load_data
from jqnt.demo import CALIB, EVAL, MODEL
from jqnt.graph.onnx_import import import_onnx


def test_the_shipped_model_is_right_in_onnxruntime():
    onnx.checker.check_model(onnx.load(MODEL), full_check=True)
    session = onnxruntime.InferenceSession(MODEL)
    data = np.load(EVAL)
    (logits,) = session.run(None, {"image": data["image"].astype(np.float32)})
    assert 100 * np.mean(logits.argmax(1) == data["labels"]) > 95


def test_the_shipped_data_fits_the_model():
    graph, _, encodings = import_onnx(MODEL)
    assert not encodings
    calib, evaluation = load_data(CALIB, graph), load_data(EVAL, graph)
    assert (calib.samples, evaluation.samples) == (512, 899)
    images = {batch["image"].tobytes() for data in (calib, evaluation) for batch in data}
    assert len(images) == len(list(calib)) + len(list(evaluation))  # nothing evaluated twice
    assert sum(path.stat().st_size for path in (MODEL, CALIB, EVAL)) < 1_000_000


def test_batch_normalization_is_kept_and_the_batch_symbolic():
    graph, _, _ = import_onnx(MODEL)
    ops = [node.op for node in graph.nodes]
    assert ops.count("BatchNormalization") == ops.count("Conv") == 9
    assert graph.info["image"].shape == ("N", 1, 16, 16)
