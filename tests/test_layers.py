"""The architecture as a test: lower layers never import higher ones, files keep their form."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jqnt"

LAYERS = (
    ("types", "errors", "memory"),
    (
        "granularity",
        "formats",
        "affine",
        "rounding",
        "scales",
        "microscaling",
        "quantizers",
        "packed",
        "ranges",
        "histogram",
        "clipping",
        "observers",
        "encodings",
        "metrics",
        "steps",
        "lpbq",
    ),
    ("graph", "ops"),
    (
        "transforms",
        "targets",
        "rules",
        "block_axes",
        "placement",
        "plan",
        "choices",
        "parametrize",
        "freeze",
        "thaw",
    ),
    ("learn", "npu", "integer"),
    ("interop", "module", "report", "compare", "data", "demo", "device_outputs", "frozen"),
    ("cli", "__main__", ""),
)
"""Layer 0 first; a name is a file or a package under jqnt/, "" the package itself."""

NEVER = (
    ("graph.ir", "graph.match"),
    ("graph.ir", "ops"),
    ("graph.match", "ops"),
    ("ops", "graph.lower"),
    ("ops", "graph.onnx_import"),
    ("graph.ir", "graph.lower"),
    ("learn.fit", "learn.calibrate"),
    ("learn.fit", "learn.qat"),
    ("learn.fit", "learn.reconstruct"),
    ("learn.fit", "learn.search"),
    ("npu", "learn"),
    ("npu", "integer"),
    ("integer", "learn"),
    ("integer", "npu"),
    ("integer.arithmetic", "integer.lower"),
    ("plan", "placement"),
    ("plan", "transforms"),
    ("transforms", "placement"),
    ("targets", "placement"),
)
"""(importer, imported) inside a layer; "learn." is any other file of learn."""

VAGUE = {"utils", "helpers", "common", "base", "misc", "manager"}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """`jqnt/graph/ir.py` -> "graph.ir"; a package's `__init__` has the package's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports_of(path: Path) -> set[str]:
    """The jqnt modules that a file imports, wherever in the file the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import in line {node.lineno}"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole.removeprefix("jqnt.") in MODULES
                found.add(whole if is_module else str(node.module))
    own = {name for name in found if name == "jqnt" or name.startswith("jqnt.")}
    return {name.removeprefix("jqnt").removeprefix(".") for name in own}


def layer_of(module: str) -> int:
    for level, names in enumerate(LAYERS):
        if module.split(".")[0] in names:
            return level
    raise AssertionError(f"jqnt/{module.split('.')[0]} has no layer: give it one in {__file__}")


def inside(module: str, pattern: str) -> bool:
    return module == pattern or module.startswith(pattern.rstrip(".") + ".")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_respect_the_layers(module):
    imported = imports_of(MODULES[module])
    higher = sorted(name for name in imported if layer_of(name) > layer_of(module))
    assert not higher, f"{module} (layer {layer_of(module)}) imports {higher}"
    for importer, banned in NEVER:
        if inside(module, importer):
            wrong = sorted(n for n in imported if inside(n, banned) and not inside(n, importer))
            assert not wrong, f"{module} imports {wrong}: {importer} never imports {banned}"


def test_files_import_no_cycle():
    """Packages' `__init__` only re-export, so they are left out."""
    edges = {m: imports_of(p) for m, p in MODULES.items() if p.name != "__init__.py"}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]):
        assert module not in trail, f"import cycle: {' -> '.join((*trail, module))}"
        if module not in done:
            for name in edges.get(module, ()):
                visit(name, (*trail, module))
            done.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_form(module):
    path = MODULES[module]
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 400, f"{module}: more than one idea?"
    assert path.stem not in VAGUE, f"{module}: a name that says nothing"
    body = [n for n in tree.body if not isinstance(n, ast.Import | ast.ImportFrom)]
    if body or tree.body:
        assert ast.get_docstring(tree), f"{module}: no docstring"
    if path.name == "__init__.py":
        rest = [n for n in body if not isinstance(n, ast.Expr | ast.Assign)]
        assert not rest, f"{module}/__init__.py does more than re-export"
    future = re.search(r"^from __future__ import annotations", path.read_text(), re.MULTILINE)
    assert not future, f"{module}: annotations must stay real for the shape checks"


def test_the_check_would_catch_a_break(tmp_path):
    bad = tmp_path / "affine.py"
    bad.write_text("def f():\n    from jqnt.graph.ir import Node\n    return Node\n")
    assert imports_of(bad) == {"graph.ir"}
    assert layer_of("graph.ir") > layer_of("affine")


def test_the_import_leaves_out_what_only_some_calls_need():
    """Plots, pages, the command line and the runtimes that verify: each loads where it is used."""
    lazy = ("jinja2", "matplotlib", "onnxruntime", "pandas", "typer")
    code = f"import sys, jqnt; print([name for name in {lazy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
