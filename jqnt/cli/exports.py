"""The formats of `jqnt export`: a name, and what writes its files into a folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from jqnt.frozen import Frozen
from jqnt.interop.aimet import to_aimet
from jqnt.interop.amct import to_amct_record
from jqnt.interop.amct_quant_cfg import to_amct_config, to_quant_cfg
from jqnt.interop.mnn import to_mnn
from jqnt.interop.ncnn import to_ncnn
from jqnt.interop.ncnn_model import dump_bin, dump_param
from jqnt.interop.ncnn_table import to_ncnn_table
from jqnt.interop.onnx_qdq import to_qdq
from jqnt.interop.onnx_qop import to_qoperator
from jqnt.interop.qnn import HtpOptions, commands, htp_config, write_inputs
from jqnt.interop.tflite import to_tflite
from jqnt.interop.to_onnx import to_onnx

__all__ = ["ALIASES", "FORMATS", "Wishes"]


@dataclass(frozen=True)
class Wishes:
    """What the caller may choose: the version of AIMET's encodings, the batch of a .tflite file,
    settings of the HTP, and samples for qnn's input_list.txt."""

    version: str = "1.0.0"
    batch: int = 1
    htp: HtpOptions = field(default_factory=HtpOptions)
    samples: Sequence[Mapping[str, Any]] = ()


def _qdq(model: Frozen, folder: Path, wishes: Wishes) -> None:
    proto = to_qdq(model.graph, model.params, model.encodings)
    onnx.save(proto, folder / "model.qdq.onnx")


def _qoperator(model: Frozen, folder: Path, wishes: Wishes) -> None:
    proto = to_qoperator(model.graph, model.params, model.encodings)
    onnx.save(proto, folder / "model.qop.onnx")


def _aimet(model: Frozen, folder: Path, wishes: Wishes) -> None:
    document = to_aimet(model.graph, model.params, model.encodings, version=wishes.version)
    _json(folder / "encodings.json", document)


def _qnn(model: Frozen, folder: Path, wishes: Wishes) -> None:
    document = to_aimet(model.graph, model.params, model.encodings, version=wishes.version)
    _json(folder / "quantization_overrides.json", document)
    onnx.save(to_onnx(model.graph, model.params), folder / "model.onnx")
    outer, inner = htp_config("model", wishes.htp)
    _json(folder / "htp_backend_extensions.json", outer)
    _json(folder / "htp_config.json", inner)
    (folder / "convert.sh").write_text(commands("model", _images(model)))
    (folder / "convert.sh").chmod(0o755)
    if wishes.samples:
        write_inputs(folder, wishes.samples)


def _images(model: Frozen) -> list[str]:
    shapes = {name: model.graph.info[name].shape for name in model.graph.inputs}
    return [name for name, shape in shapes.items() if shape is not None and len(shape) == 4]


def _amct(model: Frozen, folder: Path, wishes: Wishes) -> None:
    (folder / "record.txt").write_text(to_amct_record(model.graph, model.encodings))
    (folder / "quant.cfg").write_text(to_quant_cfg(model.graph, model.encodings))
    _json(folder / "config.json", to_amct_config(model.graph, model.encodings))
    onnx.save(to_onnx(model.graph, model.params), folder / "model.onnx")


def _ncnn(model: Frozen, folder: Path, wishes: Wishes) -> None:
    layers = to_ncnn(model.graph, model.params, model.encodings)
    (folder / "model.param").write_text(dump_param(layers))
    (folder / "model.bin").write_bytes(dump_bin(layers))
    (folder / "model.table").write_text(to_ncnn_table(model.graph, model.encodings))


def _mnn(model: Frozen, folder: Path, wishes: Wishes) -> None:
    proto, document = to_mnn(model.graph, model.params, model.encodings)
    onnx.save(proto, folder / "model.mnn.onnx")
    _json(folder / "model.mnn.json", document)


def _tflite(model: Frozen, folder: Path, wishes: Wishes) -> None:
    content = to_tflite(model.graph, model.params, model.encodings, batch=wishes.batch)
    (folder / "model.tflite").write_bytes(content)


def _json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n")


FORMATS: Mapping[str, Callable[[Frozen, Path, Wishes], None]] = {
    "onnx-qdq": _qdq,
    "onnx-qop": _qoperator,
    "aimet": _aimet,
    "qnn": _qnn,
    "amct": _amct,
    "ncnn": _ncnn,
    "mnn": _mnn,
    "tflite": _tflite,
}
ALIASES: Mapping[str, str] = {"qdq": "onnx-qdq", "qop": "onnx-qop", "encodings": "aimet"}
"""Shorter names that are understood too."""
