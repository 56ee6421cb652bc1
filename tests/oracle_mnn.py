"""Converts a model with compression parameters and runs it: oracle_mnn.py ONNX JSON X.npy Y.npy

For the Python of .venv-oracles; it knows nothing of jqnt. The converter's C entry is called, since
MNN's console scripts install packages and report to a log service.
"""

import sys

import _tools
import MNN
import MNN.nn
import MNN.numpy
import numpy as np


def main(model: str, parameters: str, inputs: str, outputs: str) -> None:
    command = ["MNNConvert", "-f", "ONNX", "--modelFile", model, "--MNNModel", "m.mnn"]
    _tools.mnnconvert([*command, "--bizCode", "x", "--compressionParamsFile", parameters])
    interpreter = MNN.Interpreter("m.mnn")
    session = interpreter.createSession({"numThread": 1, "precision": "high"})
    x = np.load(inputs)
    entry = interpreter.getSessionInput(session)
    interpreter.resizeTensor(entry, x.shape)
    interpreter.resizeSession(session)
    kind = MNN.Tensor_DimensionType_Caffe
    source = MNN.Tensor(x.shape, MNN.Halide_Type_Float, np.ascontiguousarray(x), kind)
    entry.copyFrom(source)
    interpreter.runSession(session)
    result = interpreter.getSessionOutput(session)
    shape = result.getShape()
    target = MNN.Tensor(shape, MNN.Halide_Type_Float, np.zeros(shape, np.float32), kind)
    result.copyToHostTensor(target)
    np.save(outputs, np.asarray(target.getNumpyData(), np.float32).reshape(shape))


if __name__ == "__main__":
    main(*sys.argv[1:])
