"""The files that a quantized model leaves in a folder."""

from collections.abc import Mapping
from pathlib import Path

from jqnt.frozen import Frozen, replacing, save_frozen

__all__ = ["write_model"]


def write_model(
    out: Path, model: Frozen, *, version: str = "1.0.0", texts: Mapping[str, str] | None = None
) -> list[str]:
    """Writes frozen/ and `texts` by name; all of it, or nothing. Gives the paths."""
    with replacing(out) as beside:
        save_frozen(beside, model)
        for name, text in (texts or {}).items():
            (beside / name).write_text(text)
        names = sorted(entry.name for entry in beside.iterdir())
    return [str(out / name) for name in names]
