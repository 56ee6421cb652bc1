"""Two devices see what one sees: states of observers merged, batches split over a mesh."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from on_two_devices import OBSERVERS

from jqnt.errors import ConfigError
from jqnt.learn.mesh import data_mesh, spread_batches

SCRIPT = Path(__file__).with_name("on_two_devices.py")


def test_calibration_on_two_devices_is_that_on_one():
    root = SCRIPT.parents[1]
    done = subprocess.run(
        [sys.executable, SCRIPT], capture_output=True, text=True, env={"PYTHONPATH": str(root)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = {f"{what} {name}" for what in ("merge", "calibrate") for name in OBSERVERS}
    assert set(done.stdout.splitlines()) == expected


def test_a_batch_that_the_devices_do_not_divide():
    mesh = data_mesh([jax.devices()[0]])
    assert next(spread_batches([{"x": np.ones((3, 2))}], mesh))["x"].shape == (3, 2)
    with pytest.raises(ConfigError, match="batch of no axis"):
        next(spread_batches([{"x": np.ones(())}], mesh))
