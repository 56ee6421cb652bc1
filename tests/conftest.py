"""The suite runs with shapes and types checked, rank promotion refused, data found once."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("jqnt", "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("JQNT_DATA") or ROOT.parent / "shared" / "data")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A test that wants the real data or a real backend may skip where there are no data."""
    report = yield
    present = (DATA / "models").is_dir() or "JQNT_DATA" in os.environ
    wanted = {"data", "oracles"}.intersection(getattr(item, "fixturenames", ()))
    if report.skipped and present and wanted:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped though {DATA} is there: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real models and data; tests that need it skip where it is absent."""
    if not (DATA / "models").is_dir():
        pytest.skip("no real data: set JQNT_DATA")
    return DATA


@pytest.fixture(scope="session")
def oracles() -> Path:
    """The Python of .venv-oracles, which scripts/oracles makes on the first call.

    Tests that need it skip where it cannot be installed.
    """
    done = subprocess.run(
        [ROOT / "scripts" / "oracles"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"scripts/oracles failed: {(done.stderr or done.stdout)[-500:]}")
    return ROOT / ".venv-oracles" / "bin" / "python"
