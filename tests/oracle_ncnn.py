"""Runs an int8 ncnn model: oracle_ncnn.py PARAM BIN INPUT.npy OUTPUT.npy INPUT_BLOB OUTPUT_BLOB

For the Python of .venv-oracles; it knows nothing of jqnt. Samples go one at a time.
"""

import sys

import ncnn
import numpy as np


def main(param: str, content: str, inputs: str, outputs: str, entry: str, result: str) -> None:
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_fp16_storage = net.opt.use_fp16_packed = net.opt.use_fp16_arithmetic = False
    # Packed depthwise layers take the processor's approximate reciprocal, which vendors differ in.
    net.opt.use_packing_layout = net.opt.use_bf16_storage = False
    assert net.load_param(param) == 0 and net.load_model(content) == 0
    found = []
    for sample in np.load(inputs):
        runner = net.create_extractor()
        runner.input(entry, ncnn.Mat(np.ascontiguousarray(sample)).clone())
        code, value = runner.extract(result)
        assert code == 0
        found.append(np.array(value, np.float32))
    np.save(outputs, np.stack(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
