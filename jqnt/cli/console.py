"""What commands say: tables, or JSON, on stdout."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType

__all__ = ["emit"]


def emit(document: Mapping[str, Any], tables: Sequence[RenderableType], as_json: bool) -> None:
    """The document as JSON, or else the tables that show it."""
    if as_json:
        json.dump(document, sys.stdout, indent=1, allow_nan=False)
        sys.stdout.write("\n")
        return
    # Into a file or a pipe, wide enough that tables need not break their cells.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for i, table in enumerate(tables):
        if i:
            console.print()
        console.print(table)
