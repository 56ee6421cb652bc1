"""Several devices: the same losses on one and on eight, weights split, two processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jqnt
from jqnt.errors import ConfigError
from jqnt.learn.mesh import spread_batches

CASE = Path(__file__).with_name("mesh_case.py")


def started(devices, *arguments):
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        [sys.executable, CASE, *map(str, arguments)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(process):
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def eight():
    return finished(started(8))


def test_eight_devices_have_the_losses_of_one(eight):
    """Gradients are sums over devices in another order; nothing else may differ."""
    assert eight["devices"] == [8, 8]
    (alone, weights) = eight["alone"]
    assert len(alone) == 8 and alone[-1] < alone[0]
    for way in ("split", "sharded"):
        losses, sums = eight[way]
        np.testing.assert_allclose(losses, alone, rtol=1e-5, err_msg=way)
        for name, value in weights.items():
            np.testing.assert_allclose(sums[name], value, rtol=1e-5, err_msg=name)


def test_sharded_weights_are_held_in_parts(eight):
    """An eighth of each on a device, where an axis divides by 8: 16 x 2 x 3 x 3 values and so on;
    the 5 biases are whole."""
    assert eight["parts"] == {"stem": 36, "deep": 18, "head": 10, "bias": 5}


def test_calibration_and_reconstruction_shard_alike(eight):
    (scales, error), (alone, alone_error) = eight["rounded"], eight["rounded alone"]
    np.testing.assert_allclose(scales, alone, rtol=1e-6)
    np.testing.assert_allclose(error, alone_error, rtol=1e-4)


def test_two_processes_train_as_one(eight):
    """Two devices in two processes that talk over the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    running = [started(1, address, 2, index) for index in range(2)]
    first, second = map(finished, running)
    assert first == second and first["devices"] == [1, 2]
    assert first["parts"]["stem"] == 16 * 2 * 9 // 2
    np.testing.assert_allclose(first["sharded"][0], eight["alone"][0], rtol=1e-5)
    np.testing.assert_allclose(first["rounded"][0], eight["rounded alone"][0], rtol=1e-6)
    np.testing.assert_allclose(first["rounded"][1], eight["rounded alone"][1], rtol=1e-4)


def test_a_mesh_of_one_device_here_and_batches_that_do_not_split():
    mesh = jqnt.data_mesh()
    assert mesh.size == jax.device_count() == 1
    (batch,) = spread_batches([{"x": np.ones((3, 2))}], mesh)
    np.testing.assert_array_equal(batch["x"], np.ones((3, 2)))
    with pytest.raises(ConfigError, match="a batch of no axis cannot be split over 1 devices"):
        list(spread_batches([{"x": np.float32(1)}], mesh))
