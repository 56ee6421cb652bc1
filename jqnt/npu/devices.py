"""Devices: rates, memories, granules, overheads and legal formats, read from TOML profiles."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from flax import struct

from jqnt.errors import ConfigError, nearest
from jqnt.npu.blocks import BlockArray
from jqnt.npu.pairs import Pair, pair_named
from jqnt.npu.work import VECTOR_WORK
from jqnt.types import Leaf

__all__ = ["Device", "NarrowWeights", "device", "device_names", "sources"]

GRANULES = ("pixels", "in_channels", "out_channels", "image", "vector")
_FOLDER = Path(__file__).parent / "devices"


@dataclass(frozen=True)
class NarrowWeights:
    """Which products move weights of under 8 bits in fewer bytes; all others move 8 bits.

    Kinds of `Work`, the largest kernel and stride, and the output channels to exceed.
    """

    kinds: tuple[str, ...] = ("conv", "depthwise", "dense")
    kernel: int = 10**6
    stride: int = 10**6
    above_out_channels: int = 0


@struct.dataclass
class Device:
    """One NPU as the cost model sees it; every float is a leaf that a gradient may touch.

    Rates are per second: `macs_per_s` and `depthwise_macs_per_s` by pair name (multiply-
    accumulates, padding included), `vector_per_s` by activation format (elements of cost 1),
    `vector_cost` by kind of vector work; an entry such as "pool@float16" holds for activations
    of that format only. `granules` are the multiples to which dimensions are padded: pixels,
    in_channels, out_channels and image (input channels where there are at most four) of
    products, vector for all else; `grouped_cost` multiplies grouped convolutions, and a tile of
    weights takes as long to load as `fill_pixels` pixels take on it. `vtcm_bytes_per_s` is the
    rate at which a product's activations come and go. `overlap` is the share of the shorter of
    compute and memory time that hides behind the longer, `prefetch` the share of the DRAM time
    left free by one group that loads weights of the next. A group takes `dispatch_s`, a graph
    `graph_s`, a result of one pixel `serial_s` more, and a change to the CPU or back
    `crossing_s`. `energy_j` is per multiply-accumulate by pair name, per "dram_byte" and
    "vtcm_byte"; a device of which none is known has no entry. `stored_bits` are bits per weight
    behind a lossless codec ("w8", "w4"). `relative_error` is half the width of the band that
    holds 80 % of the errors on networks that were not fitted, 0 where it is unknown.

    `array` describes arrays that work block by block; products, windows and elementwise work then
    follow from it. `modes` are (name, factor of the engines, factor of the DRAM bandwidth).
    """

    macs_per_s: dict[str, Leaf]
    depthwise_macs_per_s: dict[str, Leaf]
    vector_per_s: dict[str, Leaf]
    vector_cost: dict[str, Leaf]
    granules: dict[str, Leaf]
    dram_bytes_per_s: Leaf
    dram_efficiency: Leaf
    vtcm_bytes: Leaf
    vtcm_bytes_per_s: Leaf
    grouped_cost: Leaf
    fill_pixels: Leaf
    overlap: Leaf
    prefetch: Leaf
    dispatch_s: Leaf
    serial_s: Leaf
    graph_s: Leaf
    crossing_s: Leaf
    cpu_per_s: Leaf
    relative_error: Leaf
    energy_j: dict[str, Leaf]
    stored_bits: dict[str, Leaf]
    name: str = struct.field(pytree_node=False)
    pairs: tuple[Pair, ...] = struct.field(pytree_node=False)
    fused: tuple[str, ...] = struct.field(pytree_node=False, default=())
    cpu: tuple[str, ...] = struct.field(pytree_node=False, default=())
    legal: tuple[tuple[str, tuple[str, ...]], ...] = struct.field(pytree_node=False, default=())
    narrow: NarrowWeights = struct.field(pytree_node=False, default=NarrowWeights())
    array: BlockArray | None = struct.field(pytree_node=False, default=None)
    modes: tuple[tuple[str, float, float], ...] = struct.field(pytree_node=False, default=())

    def cost_of(self, kind: str, activation: str) -> Leaf:
        """The cost of one element of vector work in a format of activations."""
        return self.vector_cost.get(f"{kind}@{activation}", self.vector_cost[kind])

    def pair(self, name: str) -> Pair:
        """The legal pair of that name; ConfigError with the nearest names otherwise."""
        for pair in self.pairs:
            if pair.name == name:
                return pair
        known = [pair.name for pair in self.pairs]
        raise ConfigError(f"device {self.name!r} has no {name!r}{nearest(name, known)}")


def device_names() -> tuple[str, ...]:
    """The names of the profiles that ship with the package."""
    return tuple(sorted(p.stem for p in _FOLDER.glob("*.toml") if not p.stem.startswith("_")))


def device(name_or_path: str | Path) -> Device:
    """The device of a profile's name, or of a TOML file of the same form.

    Raises ConfigError for an unknown name (with the nearest), and for a file with a missing,
    unknown or non-numeric entry.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = _FOLDER / f"{name_or_path}.toml"
        if str(name_or_path) not in device_names():
            raise ConfigError(
                f"no device {str(name_or_path)!r}{nearest(str(name_or_path), device_names())}"
            )
    return _build(_read(path), path)


def sources(name_or_path: str | Path) -> dict[str, str]:
    """Dotted name of each number of a profile -> where it comes from."""
    path = Path(name_or_path)
    document = _read(path if path.suffix == ".toml" else _FOLDER / f"{name_or_path}.toml")
    return dict(_sources(document, ""))


_NUMBERS = {
    f.name for f in fields(Device) if f.metadata.get("pytree_node", True) and f.name != "name"
}
_TABLES = {
    "macs_per_s", "depthwise_macs_per_s", "vector_per_s", "vector_cost", "granules", "energy_j",
    "stored_bits",
}  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    """The profile, laid over its `base`."""
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file ({error})") from None
    base = document.pop("base", None)
    if base is None:
        return document
    under = next((f for f in (path.parent / f"{base}.toml", _FOLDER / f"{base}.toml")
                  if f.is_file()), None)  # fmt: skip
    if under is None:
        raise ConfigError(f"{path}: base {base!r} is not a profile{nearest(base, device_names())}")
    return _laid_over(_read(under), document)


def _laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if both and "value" not in value else value
    return merged


def _sources(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, entry in table.items():
        if isinstance(entry, dict) and "value" in entry:
            yield prefix + key, entry["source"]
        elif isinstance(entry, dict):
            yield from _sources(entry, f"{prefix}{key}.")


def _build(document: dict[str, Any], path: Path) -> Device:
    names = {f.name for f in fields(Device)} | {"description", "narrow_weights"}
    for key in document:
        if key not in names:
            raise ConfigError(f"{path}: unknown entry {key!r}{nearest(key, names)}")
    numbers: dict[str, Any] = {}
    for key in sorted(_NUMBERS):
        if key not in document:
            raise ConfigError(f"{path}: entry {key!r} is missing")
        entry = document[key]
        if key in _TABLES:
            numbers[key] = {k: _number(v, f"{key}.{k}", path) for k, v in entry.items()}
        else:
            numbers[key] = _number(entry, key, path)
    for kind in numbers["vector_cost"]:
        if kind.partition("@")[0] not in VECTOR_WORK:
            raise ConfigError(f"{path}: vector_cost {kind!r}{nearest(kind, VECTOR_WORK)}")
    for table, keys in (("vector_cost", VECTOR_WORK), ("granules", GRANULES)):
        for key in keys:
            if key not in numbers[table]:
                raise ConfigError(f"{path}: {table} has no entry {key!r}")
    try:
        pairs = tuple(pair_named(name) for name in document.get("pairs", ()))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    for pair in pairs:
        for table, key in (("macs_per_s", pair.name), ("vector_per_s", pair.activation)):
            if key not in numbers[table]:
                raise ConfigError(f"{path}: {table} has no entry {key!r} for pair {pair.name}")
    narrow = document.get("narrow_weights", {})
    if "kinds" in narrow:
        narrow = {**narrow, "kinds": tuple(narrow["kinds"])}
    return Device(
        **numbers,
        name=document.get("name", path.stem),
        pairs=pairs,
        fused=tuple(document.get("fused", ())),
        cpu=tuple(document.get("cpu", ())),
        legal=tuple((op, tuple(names)) for op, names in document.get("legal", {}).items()),
        narrow=NarrowWeights(**narrow),
        array=_array(document["array"], path) if "array" in document else None,
        modes=tuple(
            (
                name,
                _number(entry["engines"], f"modes.{name}.engines", path),
                _number(entry["memory"], f"modes.{name}.memory", path),
            )
            for name, entry in document.get("modes", {}).items()
        ),
    )


def _array(table: Mapping[str, Any], path: Path) -> BlockArray:
    """The [array] table, whose entries share one `source`."""
    if "source" not in table:
        raise ConfigError(f"{path}: [array] needs a source")
    values = {key: _frozen(value) for key, value in table.items() if key != "source"}
    names = {f.name for f in fields(BlockArray)}
    for key in {*values, *names}:
        if key not in names:
            raise ConfigError(f"{path}: unknown entry array.{key}{nearest(key, names)}")
        if key not in values:
            raise ConfigError(f"{path}: entry array.{key} is missing")
    return BlockArray(**values)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _number(entry: Any, key: str, path: Path) -> float:
    """The value of `{ value = ..., source = "..." }`; a number without its source is refused."""
    if not isinstance(entry, dict) or set(entry) != {"value", "source"}:
        raise ConfigError(f"{path}: {key} must be {{ value = number, source = text }}")
    value = entry["value"]
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ConfigError(f"{path}: {key} is {value!r}, not a number of zero or more")
    return float(value)
