"""The files that a quantized model leaves in a folder."""

from pathlib import Path

from jqnt.frozen import Frozen, replacing, save_frozen

__all__ = ["write_model"]


def write_model(out: Path, model: Frozen) -> list[str]:
    with replacing(out) as beside:
        save_frozen(beside, model)
        return sorted(str(out / entry.name) for entry in beside.iterdir())
