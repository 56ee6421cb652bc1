"""Profiles measured on a device -> times per node: QNN's CSV, its viewer's text, execute lines."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jqnt.errors import DataError

__all__ = ["NodeTime", "Profile", "parse_profile", "read_profile"]

_NODE = re.compile(r"^(?P<name>.+?)(?:\s+|:)OpId_(?P<id>\d+)\s*\(cycles\)$")
_VIEWER = re.compile(
    r"^\s*(?:Backend\s*\((?P<backend>.+)\)|(?P<plain>\S.*?))\s*:\s*"
    r"(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>us|cycles|count|bytes|inf/sec)\b",
    re.IGNORECASE,
)
_EXECUTE = re.compile(
    r"\bNode\s+[\"']?(?P<name>[^\s\"',:]+)[\"']?(?P<rest>.*?)\bexecute\b.*?"
    r"(?P<value>\d+(?:\.\d+)?)\s*us\b",
    re.IGNORECASE,
)
_CYCLES = "accelerator (execute) time (cycles)"
_TIMES = {
    "accelerator (execute) time": "accelerator",
    "accelerator (execute excluding wait) time": "accelerator_without_wait",
    "qnn accelerator (execute) time": "qnn_accelerator",
    "rpc (execute) time": "rpc",
    "qnn (execute) time": "qnn",
    "netrun": "netrun",
}
_START = "number of hvx threads used"
_HEADER = "msg timestamp"


@dataclass(frozen=True)
class NodeTime:
    """One node: its name as the profile has it, seconds (nan where only cycles are known and no
    total tells their length), cycles (nan if none), the ONNX nodes it came from if the profile
    says, and whether it ran on the CPU."""

    name: str
    seconds: float
    cycles: float
    sources: tuple[str, ...] = ()
    on_cpu: bool = False


@dataclass(frozen=True)
class Profile:
    """Nodes in order of appearance, averaged over the inferences of the file, without the graph's
    own inputs and outputs; `totals_s` are seconds by what was measured: accelerator, rpc, ..."""

    nodes: tuple[NodeTime, ...]
    totals_s: Mapping[str, float] = field(default_factory=dict)
    inferences: int = 1


def read_profile(path: str | Path) -> Profile:
    """The profile of a file; see `parse_profile`. DataError if it cannot be read."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return parse_profile(text)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def parse_profile(text: str) -> Profile:
    """A QNN profile in any of its forms, recognized by its content.

    1. The execution provider's CSV, of seven or eight columns; names are not quoted.
    2. The text of qnn-profile-viewer, with or without `Backend (...)`, of its average section
       where there is one.
    3. Lines `Node <name> ... execute ... <number> us`.

    Raises DataError if there is no node in it.
    """
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    if first.lower().lstrip("\ufeff").startswith(_HEADER):
        found = _collect(_csv_entries(lines))
    elif any(_EXECUTE.search(line) for line in lines):
        found = _execute_lines(lines)
    else:
        found = _collect(_viewer_entries(lines))
    if not found.nodes:
        raise DataError(
            "no node times; expected a QNN profile: its CSV, the text of qnn-profile-viewer (both "
            "with profiling level detailed), or lines 'Node <name> execute <time> us'"
        )
    return found


@dataclass(frozen=True)
class _Entry:
    name: str
    value: float
    unit: str
    sources: tuple[str, ...] = ()


def _csv_entries(lines: Iterable[str]) -> Iterable[_Entry]:
    """Rows `timestamp,message,time,unit,source,level,identifier[,ONNX source ops]`."""
    rows = [line for line in lines if line.strip()]
    eighth = rows[0].lower().rstrip().endswith("onnx source ops")
    for number, line in enumerate(rows[1:], start=2):
        parts = line.split(",", 6)
        if len(parts) < 7:
            raise DataError(f"row {number} has {len(parts)} columns, not 7")
        message, value, unit, identifier = parts[1].strip(), parts[2], parts[3].strip(), parts[6]
        sources: tuple[str, ...] = ()
        if eighth and "," in identifier:
            identifier, _, listed = identifier.rpartition(",")
            sources = tuple(name.strip() for name in listed.split(";") if name.strip())
        if message.upper() in ("INIT", "FINALIZE", "DE-INIT", "UNKNOWN"):
            continue
        try:
            yield _Entry(identifier.strip(), float(value), unit.lower(), sources)
        except ValueError:
            raise DataError(f"row {number}: time {value!r} is no number") from None


def _viewer_entries(lines: list[str]) -> Iterable[_Entry]:
    """The lines of the average section, or of the first section of execution, or of all."""
    sections: dict[str, list[str]] = {"": []}
    title = ""
    for line in lines:
        if re.match(r"^\S.*\bStat", line) and not line.lstrip().startswith("Backend"):
            title = line.strip().lower()
            sections.setdefault(title, [])
        sections[title].append(line)
    executed = [t for t in sections if t.startswith("execute stat")]
    chosen = next((t for t in executed if "average" in t), executed[0] if executed else "")
    for line in sections[chosen]:
        if match := _VIEWER.match(line):
            name = match["backend"] or match["plain"]
            yield _Entry(name.strip(), float(match["value"]), match["unit"].lower())


def _collect(entries: Iterable[_Entry]) -> Profile:
    """Averages over inferences; cycles become seconds by the accelerator's own total."""
    cycles: dict[str, list[float]] = {}
    sources: dict[str, tuple[str, ...]] = {}
    totals: dict[str, list[float]] = {}
    starts = 0
    for entry in entries:
        key = entry.name.lower()
        if key.startswith(_START):
            starts += 1
        if match := _NODE.match(entry.name):
            name = match["name"].strip()
            if name not in ("Input", "Output"):
                cycles.setdefault(name, []).append(entry.value)
                sources[name] = entry.sources or sources.get(name, ())
        elif key == _CYCLES or key in _TIMES:
            totals.setdefault(key, []).append(entry.value)
    mean = {key: sum(values) / len(values) for key, values in totals.items()}
    elapsed = mean.get("accelerator (execute) time")
    total = mean.get(_CYCLES)
    each = elapsed * 1e-6 / total if elapsed and total else float("nan")
    inferences = max(starts, 1)
    nodes = []
    for name, values in cycles.items():
        average = sum(values) / max(inferences, 1) if starts else sum(values) / len(values)
        nodes.append(NodeTime(name, average * each, average, sources[name]))
    named = {_TIMES[key]: value * 1e-6 for key, value in mean.items() if key in _TIMES}
    return Profile(tuple(nodes), named, inferences)


def _execute_lines(lines: Iterable[str]) -> Profile:
    """Microseconds by name; a name that comes again is another inference."""
    times: dict[str, list[float]] = {}
    cpu: set[str] = set()
    for line in lines:
        if match := _EXECUTE.search(line):
            times.setdefault(match["name"], []).append(float(match["value"]))
            if re.search(r"\bCPU\b", match["rest"] + line[match.end() :], re.IGNORECASE):
                cpu.add(match["name"])
    nan = float("nan")
    nodes = tuple(
        NodeTime(name, 1e-6 * sum(v) / len(v), nan, (), name in cpu) for name, v in times.items()
    )
    count = max((len(v) for v in times.values()), default=1)
    return Profile(nodes, {"nodes": sum(node.seconds for node in nodes)}, count)
