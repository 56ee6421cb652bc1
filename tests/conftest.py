"""The suite runs with shapes and types checked, rank promotion refused, data found once."""

import os
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("jqnt", "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("JQNT_DATA") or ROOT.parent / "shared" / "data")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real models and data; tests that need it skip where it is absent."""
    if not (DATA / "models").is_dir():
        pytest.skip("no real data: set JQNT_DATA")
    return DATA
