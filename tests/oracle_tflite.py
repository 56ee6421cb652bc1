"""Runs a .tflite file in LiteRT: oracle_tflite.py MODEL INPUTS.npy OUTPUTS.npy ref|auto

For the Python of .venv-oracles; it knows nothing of jqnt. One input, one output, both int8.
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType


def main(model: str, inputs: str, outputs: str, kernels: str) -> None:
    kinds = {"ref": OpResolverType.BUILTIN_REF, "auto": OpResolverType.AUTO}
    runner = Interpreter(model_path=model, experimental_op_resolver_type=kinds[kernels])
    images = np.load(inputs)
    (entry,), (result,) = runner.get_input_details(), runner.get_output_details()
    size = entry["shape"][0]
    runner.allocate_tensors()
    found = []
    for start in range(0, len(images), size):
        runner.set_tensor(entry["index"], images[start : start + size])
        runner.invoke()
        found.append(runner.get_tensor(result["index"]))
    np.save(outputs, np.concatenate(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
