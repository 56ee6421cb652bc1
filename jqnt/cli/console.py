"""What commands say: a table or JSON on stdout, progress on stderr."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["emit", "progress_bar"]


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


@contextmanager
def progress_bar(silent: bool) -> Iterator[Callable[[str, int, int], None]]:
    """`show(what, done, total)`: one bar on stderr, renamed as the work goes on."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=silent)
    with bar:
        task = bar.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield show
