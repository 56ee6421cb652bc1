"""Rounds the small network of the tests, and is killed when `calls` pieces are done.

killed_run.py FOLDER METHOD CALLS OUT.npz
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from test_reconstruct import KEY, calibrated

from jqnt.learn.roundings import round_weights


def rounded(folder: Path | None, method: str, calls: int) -> list[np.ndarray]:
    """All leaves of the result; the process dies in the middle if `calls` is positive."""
    graph, params, chosen, theta, data = calibrated()
    seen = []

    def progress(done, total, metrics):
        seen.append(done)
        if len(seen) == calls:
            os.kill(os.getpid(), signal.SIGKILL)

    found = round_weights(
        graph, params, theta, chosen, data, method,
        steps=30, folder=folder, progress=progress, key=KEY,
    )  # fmt: skip
    return [np.asarray(leaf) for leaf in jax.tree.leaves((found.params, found.theta))]


if __name__ == "__main__":
    where, name, count, out = sys.argv[1:]
    np.savez(out, *rounded(Path(where), name, int(count)))
