"""AMCT's configurations written from encodings, and its short form quant.cfg read into rules.

quant.cfg is protobuf text of AMCTConfig: github.com/hicann/amct, amct_pytorch/classic/graph_based,
proto/calibration_config_pytorch.proto. config.json is its long form (see `amct_config`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import ConfigError, DataError, nearest
from jqnt.formats import Integer
from jqnt.graph.ir import Graph
from jqnt.interop.amct_config import AmctConfig, read_amct_config
from jqnt.interop.layers import layers_of
from jqnt.interop.prototext import Message, Word, dump, parse

__all__ = ["read_quant_cfg", "to_amct_config", "to_quant_cfg"]

_TOP = (
    "batch_num",
    "activation_offset",
    "joint_quant",
    "skip_layers",
    "skip_layer_types",
    "common_config",
    "override_layer_types",
    "override_layer_configs",
    "do_fusion",
    "skip_fusion_layers",
)
_IFMR = ("search_step", "max_percentile", "min_percentile", "asymmetric")


def to_amct_config(graph: Graph, encodings: Encodings, *, batch_num: int = 1) -> dict[str, Any]:
    """config.json, with an entry for each layer: enabled where input and weight are encoded."""
    document: dict[str, Any] = {
        "version": 1,
        "batch_num": batch_num,
        "activation_offset": True,
        "do_fusion": False,
        "skip_fusion_layers": [],
    }
    for name, read in layers_of(graph).items():
        data, weight = encodings.tensors.get(read.data), encodings.tensors.get(read.tensor)
        if data is None or weight is None or not _integers(data, weight):
            document[name] = {"quant_enable": False}
            continue
        document[name] = {
            "quant_enable": True,
            "activation_quant_params": {
                "num_bits": data.format.bits,
                "act_algo": "ifmr",
                "asymmetric": not data.symmetric,
            },
            "weight_quant_params": {
                "num_bits": weight.format.bits,
                "wts_algo": "arq_quantize",
                "channel_wise": weight.granularity.axis is not None,
            },
        }
    return document


def to_quant_cfg(graph: Graph, encodings: Encodings, *, batch_num: int = 1) -> str:
    """The same as quant.cfg."""
    document = to_amct_config(graph, encodings, batch_num=batch_num)
    message: Message = [("batch_num", batch_num), ("activation_offset", True)]
    layers = {name: document[name] for name in layers_of(graph)}
    message += [("skip_layers", n) for n, entry in layers.items() if not entry["quant_enable"]]
    message.append(("do_fusion", False))
    for name, entry in layers.items():
        if not entry["quant_enable"]:
            continue
        activation, weight = entry["activation_quant_params"], entry["weight_quant_params"]
        ifmr: Message = [("asymmetric", activation["asymmetric"])]
        if activation["num_bits"] != 8:
            ifmr.append(("dst_type", Word(f"INT{activation['num_bits']}")))
        arq: Message = [("channel_wise", weight["channel_wise"])]
        if weight["num_bits"] != 8:
            arq.append(("quant_bits", weight["num_bits"]))
        calibration: Message = [("arq_quantize", arq), ("ifmr_quantize", ifmr)]
        message.append(
            (
                "override_layer_configs",
                [("layer_name", name), ("calibration_config", calibration)],
            )
        )
    return dump(message)


def read_quant_cfg(source: str | Path, graph: Graph) -> AmctConfig:
    """The rules that a quant.cfg (a path, or its text) sets, as those of a config.json.

    Common settings come first, then those of a layer's type, then the layer's own. Raises
    ConfigError, naming the field, for what is unknown or illegal.
    """
    where = str(source) if isinstance(source, Path) else "quant.cfg"
    try:
        message = parse(source.read_text() if isinstance(source, Path) else source, where)
    except (OSError, DataError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from None
    for key, _ in message:
        if key not in _TOP:
            raise ConfigError(f"{where}: unknown field {key!r}{nearest(key, _TOP)}")
    document: dict[str, Any] = {"version": 1}
    for key, value in message:
        if key in ("batch_num", "activation_offset", "joint_quant", "do_fusion"):
            document[key] = value
    nodes = {node.name: node for node in graph.nodes}
    layers = layers_of(graph)
    common = [v for k, v in message if k == "common_config"]
    by_type, by_name = (
        {_text(v, key, where): _calibration(v, where) for k, v in message if k == field}
        for field, key in (
            ("override_layer_types", "layer_type"),
            ("override_layer_configs", "layer_name"),
        )
    )
    skipped = {v for k, v in message if k == "skip_layers"}
    types = {v for k, v in message if k == "skip_layer_types"}
    for name in (*skipped, *by_name):
        if name not in layers:
            raise ConfigError(f"{where}: no layer {name!r}{nearest(str(name), layers)}")
    for name in layers:
        kind = nodes[name].op
        if name in skipped or kind in types:
            document[name] = {"quant_enable": False}
            continue
        settings = [*common, *([by_type[kind]] if kind in by_type else [])]
        settings += [by_name[name]] if name in by_name else []
        entry: dict[str, Any] = {}
        for setting in settings:
            _merge(entry, setting, f"{where}, {name}")
        if entry:
            document[name] = entry
    return read_amct_config(document, graph)


def _integers(*encodings: Encoding) -> bool:
    return all(isinstance(e.format, Integer) for e in encodings)


def _text(message: Any, key: str, where: str) -> str:
    found = [v for k, v in message if k == key] if isinstance(message, list) else []
    if len(found) != 1 or not isinstance(found[0], str):
        raise ConfigError(f"{where}: an override needs one {key}")
    return found[0]


def _calibration(message: Message, where: str) -> Message:
    found = [v for k, v in message if k == "calibration_config"]
    if len(found) != 1 or not isinstance(found[0], list):
        raise ConfigError(f"{where}: an override needs one calibration_config")
    return found[0]


def _merge(entry: dict[str, Any], calibration: Message, where: str) -> None:
    """A CalibrationConfig in the words of config.json, on top of what is there."""
    activation = entry.setdefault("activation_quant_params", {})
    weight = entry.setdefault("weight_quant_params", {})
    for field, value in calibration:
        table: Mapping[str, Any] = dict(value) if isinstance(value, list) else {}
        if field in ("arq_quantize", "ada_quantize"):
            weight["wts_algo"] = field
            weight |= {k: v for k, v in table.items() if k in ("channel_wise",)}
            weight |= {
                k: table[k] for k in ("num_iteration", "reg_param", "warm_start") if k in table
            }
            if "quant_bits" in table:
                weight["num_bits"] = table["quant_bits"]
            if "beta_range_start" in table and "beta_range_end" in table:
                weight["beta_range"] = [table["beta_range_start"], table["beta_range_end"]]
        elif field in ("ifmr_quantize", "hfmg_quantize"):
            activation["act_algo"] = field.removesuffix("_quantize")
            activation |= {k: v for k, v in table.items() if k in (*_IFMR, "num_of_bins")}
            if "search_range_start" in table and "search_range_end" in table:
                activation["search_range"] = [
                    table["search_range_start"],
                    table["search_range_end"],
                ]
            kind = table.get("dst_type")
            if isinstance(kind, Word):
                activation["num_bits"] = int(kind.name.removeprefix("INT"))
        elif field == "dmq_balancer":
            entry["dmq_balancer_param"] = table.get("migration_strength", 0.5)
        else:
            known = ("arq_quantize", "ada_quantize", "ifmr_quantize", "hfmg_quantize")
            raise ConfigError(f"{where}: unknown field {field!r}{nearest(field, known)}")
