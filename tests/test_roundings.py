"""Rounding by name: every method gains, mixed plans, runs that are killed and go on."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from killed_run import rounded
from test_reconstruct import KEY, W3A8, calibrated

from jqnt.errors import ConfigError, DataError
from jqnt.formats import FP16
from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.learn.roundings import ROUNDINGS, round_weights
from jqnt.plan import bind
from jqnt.rules import Rule
from jqnt.thaw import thaw

LEARNED = tuple(name for name in ROUNDINGS if name != "nearest")
MIXED = (Rule(name="w1", format="float16"), Rule(name="w3", format="int8", role="weight"), *W3A8)


@functools.cache
def found(method, rules=W3A8):
    graph, params, chosen, theta, data = calibrated(rules)
    return round_weights(graph, params, theta, chosen, data, method, steps=100, key=KEY)


def frozen(method, rules=W3A8):
    graph, _, chosen, _, _ = calibrated(rules)
    result = found(method, rules)
    return freeze(graph, result.params, bind(result.theta, chosen))


def error64(method, rules=W3A8):
    """sum (y - y~)^2 of what deploys, after freezing."""
    graph, params, _, _, data = calibrated(rules)
    own, encodings = frozen(method, rules)
    apply, total = lower(graph), 0.0
    for batch in data:
        y = np.asarray(apply(params, {}, batch)["y"], np.float64)
        total += ((y - np.asarray(apply(own, thaw(encodings), batch)["y"])) ** 2).sum()
    return total


@pytest.mark.parametrize("method", LEARNED)
def test_every_method_gains_over_nearest(method):
    assert error64(method) < 0.95 * error64("nearest")


@pytest.mark.parametrize("method", ["gptq", "flexround", "qdrop"])
def test_formats_of_the_plan_hold(method):
    """FP16 and eight-bit layers among three-bit ones keep their formats; the rest is rounded."""
    _, params, *_ = calibrated(MIXED)
    own, encodings = frozen(method, MIXED)
    assert encodings["w1"].format == FP16
    assert [encodings[n].format.bits for n in ("w2", "w3", "w4")] == [3, 8, 3]
    np.testing.assert_allclose(own["w1"], params["w1"].astype(np.float16), rtol=1e-3)
    assert error64(method, MIXED) < error64("nearest", MIXED)


def killed(folder, method, calls, out):
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    args = [sys.executable, str(here / "killed_run.py"), str(folder), method, str(calls), str(out)]
    return subprocess.run(args, env={**os.environ, "PYTHONPATH": path}, capture_output=True)


@pytest.mark.parametrize(("method", "calls"), [("adaround-bias", 2), ("qdrop", 5)])
def test_a_killed_run_goes_on_with_the_same_bits(method, calls, tmp_path):
    """Two of four layers are done; four layers and one of two blocks are."""
    folder, out = tmp_path / "kept", tmp_path / "out.npz"
    assert killed(folder, method, calls, out).returncode == -signal.SIGKILL
    assert not out.exists()
    stages = sorted(p.name for p in folder.iterdir())
    assert stages == (["layers"] if method == "adaround-bias" else ["blocks", "layers"])
    last = folder / stages[0]
    done = {p.name for p in last.iterdir() if p.name.isdigit()}
    assert len(done) == (3 if method == "adaround-bias" else 2)  # one more is the identity
    ended = killed(folder, method, 0, out)
    assert ended.returncode == 0, ended.stderr.decode()[-2000:]
    with np.load(out) as file:
        resumed = [file[name] for name in file.files]
    whole = rounded(None, method, 0)
    assert len(resumed) == len(whole)
    for a, b in zip(resumed, whole, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_the_folder_of_another_run_is_refused(tmp_path):
    graph, params, chosen, theta, data = calibrated()
    run = functools.partial(
        round_weights, graph, params, theta, chosen, data, "adaround", steps=0, folder=tmp_path
    )
    run(key=KEY)
    with pytest.raises(DataError, match="another reconstruction"):
        run(key=jax.random.key(7))


def test_an_unknown_name_is_refused():
    graph, params, chosen, theta, data = calibrated()
    with pytest.raises(ConfigError, match=r"no rounding 'adarond'.*adaround"):
        round_weights(graph, params, theta, chosen, data, "adarond", key=KEY)
