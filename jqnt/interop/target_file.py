"""A target by name or file, whoever wrote the file: jqnt's TOML, AIMET's or AMCT's JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jqnt.errors import ConfigError
from jqnt.graph.ir import Graph
from jqnt.interop.amct_config import read_amct_config
from jqnt.interop.quantsim import read_quantsim_config
from jqnt.rules import Rule
from jqnt.targets import Target, load_target

__all__ = ["Described", "read_target"]


@dataclass(frozen=True)
class Described:
    """What `plan` takes: a target, and rules that come after the user's own. `unhonoured` are the
    keys of the file that mean nothing here."""

    target: Target
    rules: tuple[Rule, ...] = ()
    unhonoured: tuple[str, ...] = ()


def read_target(name: str, graph: Graph) -> Described:
    """The target of that name, or the description in a .toml file, a quantsim configuration or an
    AMCT config.json for the layers of `graph`.

    Raises ConfigError for an unknown name and a file that is none of these.
    """
    if Path(name).suffix != ".json":
        return Described(load_target(name))
    try:
        document: Any = json.loads(Path(name).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"target {name!r} cannot be read: {error}") from None
    keys = set(document) if isinstance(document, dict) else set()
    if "op_type" in keys or "defaults" in keys:
        found = read_quantsim_config(name, graph)
        return Described(found.target, (), found.unhonoured)
    if "version" in keys:
        config = read_amct_config(name, graph)
        beside = [f"batch_num {config.batch_num}: all batches that are given count"]
        beside += [
            f"{layer}.wts_algo ada_quantize: rounding is learned for all layers or for none"
            for layer in config.learned_rounding
        ]
        return Described(load_target("amct"), config.rules, (*config.unhonoured, *beside))
    raise ConfigError(
        f"target {name!r} is neither a quantsim configuration (it has no op_type) nor an AMCT "
        f"config.json (it has no version)"
    )
