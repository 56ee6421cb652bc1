"""The command line: thin functions over the library, one file a command."""

from jqnt.cli.main import app, main, run

__all__ = ["app", "main", "run"]
