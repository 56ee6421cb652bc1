"""What Qualcomm's converter and runtime take beside a model: overrides, HTP settings, commands.

Encodings go out as AIMET's file (see `aimet`). Keys of the HTP backend extension: Qualcomm AI
Engine Direct SDK, "HTP Backend Extensions". The commands are the SDK's; they run where it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jqnt.errors import ConfigError, DataError

__all__ = ["HtpOptions", "commands", "htp_config", "write_inputs"]


@dataclass(frozen=True)
class HtpOptions:
    """How the HTP compiles and runs a graph; None leaves a setting to the SDK.

    `vtcm_mb` is the tightly coupled memory (0: all there is), `dlbc` bandwidth compression,
    `optimization` the level O from 1 to 3, `dsp_arch` such as "v73".
    """

    vtcm_mb: int | None = 8
    dlbc: bool | None = None
    optimization: int | None = 3
    hvx_threads: int | None = None
    soc_model: int | None = None
    dsp_arch: str | None = None

    def __post_init__(self):
        if self.optimization not in (None, 1, 2, 3):
            raise ConfigError(f"the HTP optimization level is 1, 2 or 3, not {self.optimization}")
        if self.vtcm_mb is not None and self.vtcm_mb < 0:
            raise ConfigError(f"vtcm_mb is {self.vtcm_mb}; 0 takes all there is")


def htp_config(graph_name: str, options: HtpOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the file for --config_file, the file that it names, htp_config.json)."""
    graph: dict[str, Any] = {"graph_names": [graph_name]}
    settings = {
        "vtcm_mb": options.vtcm_mb,
        "O": options.optimization,
        "hvx_threads": options.hvx_threads,
        "dlbc": None if options.dlbc is None else int(options.dlbc),
    }
    graph |= {key: value for key, value in settings.items() if value is not None}
    device: dict[str, Any] = {"device_id": 0}
    if options.soc_model is not None:
        device["soc_model"] = options.soc_model
    if options.dsp_arch is not None:
        device["dsp_arch"] = options.dsp_arch
    device["cores"] = [{"core_id": 0, "perf_profile": "burst"}]
    outer = {
        "backend_extensions": {
            "shared_library_path": "libQnnHtpNetRunExtensions.so",
            "config_file_path": "htp_config.json",
        }
    }
    return outer, {"graphs": [graph], "devices": [device]}


def commands(model: str = "model", inputs: Sequence[str] = ()) -> str:
    """A shell script that converts, quantizes by the overrides, compiles for HTP and runs.

    The files have the names that `jqnt export --to qnn` gives them. `inputs` keep their layout.
    """
    keep = "".join(f" \\\n    --source_model_input_layout '{name}' NCHW" for name in inputs)
    return (
        "#!/bin/sh\n"
        "# Run where the Qualcomm AI Engine Direct SDK is set up; the last command runs on a\n"
        "# device.\n"
        "set -e\n"
        f"qairt-converter --input_network {model}.onnx \\\n"
        f"    --quantization_overrides quantization_overrides.json{keep} \\\n"
        f"    --output_path {model}.dlc\n"
        f"qairt-quantizer --input_dlc {model}.dlc --input_list input_list.txt \\\n"
        f"    --output_dlc {model}_quantized.dlc\n"
        "qnn-context-binary-generator --backend libQnnHtp.so --model libQnnModelDlc.so \\\n"
        f"    --dlc_path {model}_quantized.dlc --binary_file {model} \\\n"
        "    --config_file htp_backend_extensions.json\n"
        f"qnn-net-run --backend libQnnHtp.so --retrieve_context output/{model}.bin \\\n"
        "    --input_list input_list.txt --config_file htp_backend_extensions.json\n"
    )


def write_inputs(folder: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """inputs/<number>/<name>.raw, float32 in C order, and input_list.txt that names them.

    Raises DataError without samples.
    """
    if not samples:
        raise DataError("no samples for input_list.txt; at least one is needed")
    lines = []
    for i, sample in enumerate(samples):
        place = folder / "inputs" / f"{i:04d}"
        place.mkdir(parents=True)
        words = []
        for name, value in sample.items():
            file = place / f"{_file_name(name)}.raw"
            array = np.asarray(value)
            kind = "<f4" if array.dtype.kind == "f" else array.dtype.newbyteorder("<")
            file.write_bytes(np.ascontiguousarray(array, kind).tobytes())
            words.append(f"{name}:={file.relative_to(folder)}")
        lines.append(" ".join(words))
    (folder / "input_list.txt").write_text("\n".join(lines) + "\n")


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
