"""The application: its commands, and errors as one line with exit code 2."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import typer
from typer.exceptions import TyperException

from jqnt.cli.compare import compare
from jqnt.cli.emulate import emulate
from jqnt.cli.export import export
from jqnt.cli.inspect import inspect
from jqnt.cli.profile import profile
from jqnt.cli.quantize import quantize
from jqnt.cli.recover import recover
from jqnt.cli.search import search
from jqnt.errors import JqntError
from jqnt.memory import keep_freed_memory

__all__ = ["app", "main", "run"]

app = typer.Typer(
    name="jqnt",
    help="Differentiable quantization on JAX: from an ONNX model to an NPU, with the evidence.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (inspect, quantize, search, emulate, export, profile, compare, recover):
    app.command()(command)


def main() -> None:
    """The console script: exits with 0, or 2 after `error: ...` on stderr."""
    _keep_compiled_programs()
    keep_freed_memory()
    # Functions of the user's, given as module:function, lie where the command is run.
    sys.path.append(os.getcwd())
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Runs the command line `args` and returns the exit code."""
    try:
        code = app(list(args) or ["--help"], prog_name="jqnt", standalone_mode=False)
    except JqntError as error:
        return _fail(str(error))
    except TyperException as error:
        return _fail(error.format_message())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _keep_compiled_programs() -> None:
    """JAX's persistent compilation cache, in the user's cache folder unless it is set already."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(root / "jqnt" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
