"""Reads Huawei AMCT's config.json into rules for one graph."""

import glob
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jqnt.errors import ConfigError, nearest
from jqnt.graph.ir import Graph, Node
from jqnt.graph.match import static_tensors
from jqnt.graph.roles import weight_of
from jqnt.rules import Rule

__all__ = ["AmctConfig", "read_amct_config"]


@dataclass(frozen=True)
class AmctConfig:
    """`rules` for `plan(graph, rules, target="amct")`, the number of calibration batches, the
    layers whose rounding is to be learned, and the keys that mean nothing here."""

    rules: tuple[Rule, ...]
    batch_num: int
    learned_rounding: tuple[str, ...]
    unhonoured: tuple[str, ...]


_GLOBAL = (
    "version",
    "batch_num",
    "activation_offset",
    "joint_quant",
    "do_fusion",
    "skip_fusion_layers",
    "tensor_quantize",
)
_LAYER = ("quant_enable", "dmq_balancer_param", "activation_quant_params", "weight_quant_params")
_IFMR = ("max_percentile", "min_percentile", "search_range", "search_step")
_ACTIVATION = ("num_bits", "act_algo", "asymmetric", "num_of_bins", *_IFMR)
_ADA = ("num_iteration", "reg_param", "beta_range", "warm_start")
_WEIGHT = ("num_bits", "wts_algo", "channel_wise", *_ADA)


def read_amct_config(source: str | Path | Mapping[str, Any], graph: Graph) -> AmctConfig:
    """The rules that a config.json sets, layer by layer; a layer is a node of `graph`.

    A layer's activation is its input: it stays float if every layer that reads it is disabled.
    A layer that the file does not name keeps the target's defaults and the file's
    activation_offset; `asymmetric` of a layer wins over that.

    Raises ConfigError, naming the key, for an unknown layer or key and an illegal value.
    Source: AMCT, docs/zh/context/ptq_config_param.md.
    """
    document, where = _parsed(source)
    if document.get("version") != 1:
        raise ConfigError(f"{where}: version is {document.get('version')!r}, 1 is known")
    batch_num = document.get("batch_num", 1)
    if not isinstance(batch_num, int) or isinstance(batch_num, bool) or batch_num < 1:
        raise ConfigError(f"{where}: batch_num is {batch_num!r}, it must be a positive integer")
    static = static_tensors(graph)
    layers = {node.name: node for node in graph.nodes}
    weighted = [name for name, node in layers.items() if weight_of(node, static) is not None]
    named = {key: entry for key, entry in document.items() if key not in _GLOBAL}
    for name, entry in named.items():
        if name not in layers:
            raise ConfigError(f"{where}: no layer {name!r}{nearest(name, [*weighted, *_GLOBAL])}")
        _check(entry, _LAYER, f"{where}, {name}")
    offset = _boolean(document, "activation_offset", True, where)
    rules: list[Rule] = []
    inputs: dict[str, Rule] = {}
    off: set[str] = set()
    learned, unhonoured = [], [f"{key}: no meaning here" for key in _GLOBAL[3:] if key in document]
    for name, entry in named.items():
        node, at = layers[name], f"{where}, {name}"
        tensor = node.inputs[0]
        if not _boolean(entry, "quant_enable", True, at):
            off.add(name)
            if weight_of(node, static) is not None:
                rules.append(Rule(glob.escape(name), role="weight", format="float32"))
            continue
        activation = entry.get("activation_quant_params", {})
        weight = entry.get("weight_quant_params", {})
        _check(activation, _ACTIVATION, f"{at}, activation_quant_params")
        _check(weight, _WEIGHT, f"{at}, weight_quant_params")
        asymmetric = _boolean(activation, "asymmetric", offset, at)
        rule = Rule(
            glob.escape(tensor),
            role="activation",
            format=_width(activation, at),
            symmetric=not asymmetric,
        )
        if inputs.setdefault(tensor, rule) != rule:
            raise ConfigError(f"{at}: its input {tensor!r} is set otherwise for another layer")
        if weight and weight_of(node, static) is not None:
            per_channel = _boolean(weight, "channel_wise", True, at)
            rules.append(
                Rule(
                    glob.escape(name),
                    role="weight",
                    format=_width(weight, at),
                    granularity="channel" if per_channel else "tensor",
                )
            )
        if _word(weight, "wts_algo", ("arq_quantize", "ada_quantize"), at) == "ada_quantize":
            learned.append(name)
        _word(activation, "act_algo", ("ifmr", "hfmg"), at)
        unhonoured += [
            f"{name}.{key}: the observer is chosen at calibration"
            for key in ("act_algo", "num_of_bins", *_IFMR)
            if key in activation
        ]
        unhonoured += [
            f"{name}.{key}: chosen where rounding is learned" for key in _ADA if key in weight
        ]
        if "dmq_balancer_param" in entry:
            unhonoured.append(f"{name}.dmq_balancer_param: no such balancing")
    rules += _disabled_inputs(graph, layers, off, inputs)
    rules += inputs.values()
    if not offset:
        rules.append(Rule(role="activation", symmetric=True))
    return AmctConfig(tuple(rules), batch_num, tuple(learned), tuple(unhonoured))


def _disabled_inputs(
    graph: Graph, layers: Mapping[str, Node], off: Collection[str], inputs: Mapping[str, Rule]
) -> list[Rule]:
    """Float rules for the tensors that only disabled layers read."""
    tensors = dict.fromkeys(layers[name].inputs[0] for name in off)
    return [
        Rule(glob.escape(tensor), role="activation", format="float32")
        for tensor in tensors
        if tensor not in inputs and {node.name for node in graph.readers[tensor]} <= set(off)
    ]


def _width(table: Mapping[str, Any], where: str) -> str:
    bits = table.get("num_bits", 8)
    if bits not in (8, 16):
        raise ConfigError(f"{where}: num_bits is {bits!r}, it must be 8 or 16")
    return f"int{bits}"


def _word(table: Mapping[str, Any], key: str, known: tuple[str, ...], where: str) -> str:
    value = table.get(key, known[0])
    if value not in known:
        raise ConfigError(f"{where}: {key} is {value!r}, it must be {' or '.join(known)}")
    return value


def _boolean(table: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = table.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {key} is {value!r}, it must be true or false")
    return value


def _parsed(source: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    if isinstance(source, Mapping):
        return source, "AMCT configuration"
    where = f"AMCT configuration {str(source)!r}"
    try:
        document = json.loads(Path(source).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{where} is no JSON object")
    return document, where


def _check(table: Any, known: Collection[str], where: str) -> None:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: an object is needed, not {table!r}")
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, known)}")
