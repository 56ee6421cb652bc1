"""Observers on two devices: each sees its half, and what is merged is what one device sees."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("merge_case.py")


def test_two_devices_observe_what_one_does():
    path = os.pathsep.join((str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, SCRIPT],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    names = ("minmax", "deviations", "histogram")
    assert set(done.stdout.splitlines()) == {
        f"{w} {n}" for w in ("merge", "calibrate") for n in names
    }
