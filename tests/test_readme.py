"""The README's lines of Python run as they stand, and its commands exist."""

import re
from pathlib import Path

from jqnt.cli import run
from jqnt.encodings import Encodings

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    encodings = Encodings.load("encodings.json")
    assert encodings["fc.weight"].format.name == "int4"
    assert 1e-4 < float(scope["seconds"]) < 1e-3
    (batch,) = (b for b, _ in zip(scope["calib"], range(1), strict=False))
    assert scope["run"]({"image": batch["image"]})["logits"].shape == (len(batch["image"]), 10)


def test_every_command_and_path_exists(capsys):
    for command in re.findall(r"^\| `jqnt (\w+)", README, re.MULTILINE):
        assert run([command, "--help"]) == 0
    for path in re.findall(r"`((?:jqnt|notebooks|tests|scripts)/[\w./]*)`", README):
        assert (ROOT / path).exists(), path
    for script in ("demo", "test"):
        assert f"scripts/{script} " in README
        assert (ROOT / "scripts" / script).stat().st_mode & 0o111
