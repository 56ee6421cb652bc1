"""AMCT's loop on a network with one layer that hardly bears quantization; the layers' quality."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from jqnt import npu
from jqnt.errors import ConfigError, UnsupportedError
from jqnt.graph.ir import Graph
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.learn.calibrate import calibrate
from jqnt.learn.drafts import SQNR
from jqnt.learn.layer_quality import layer_quality
from jqnt.learn.recover import recover
from jqnt.metrics import evaluator, metric_named
from jqnt.placement import plan
from jqnt.plan import bind
from jqnt.rules import scheme

RNG = np.random.default_rng(4)
LAYERS, WIDTH, WORST = 4, 8, "fc2"
RULES = scheme("int4", "uint8", per_channel=False)


def chain() -> onnx.ModelProto:
    """Four matrix products with Relu between; a weight of the third is far off all others."""
    nodes, weights, now = [], {}, "x"
    for i in range(LAYERS):
        w = RNG.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 3
        if f"fc{i}" == WORST:
            w[0, 0] = 8.0
        weights[f"w{i}"] = w
        weights[f"b{i}"] = RNG.normal(size=WIDTH).astype(np.float32) / 10
        last = "y" if i == LAYERS - 1 else f"h{i}"
        nodes.append(helper.make_node("Gemm", [now, f"w{i}", f"b{i}"], [last], f"fc{i}", transB=1))
        if last != "y":
            now = f"r{i}"
            nodes.append(helper.make_node("Relu", [last], [now], f"relu{i}"))
    shape = ["N", WIDTH]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def job():
    graph, params, _ = import_onnx(chain().SerializeToString())
    x = RNG.normal(size=(96, WIDTH)).astype(np.float32)
    batches = [{"x": x[i : i + 32]} for i in (0, 32, 64)]
    return graph, params, batches, npu.device("snapdragon-8-gen-3")


def asked(job, **changes):
    graph, params, batches, device = job
    batches = batches[: changes.pop("batches", 3)]
    judge = evaluator(
        metric_named("mse"), batches, graph.inputs, reference=lambda x: floats(params, x["x"])
    )
    settings = {"max_drop": 0.0, "run_all": True, "strategy": "amct", "rules": RULES} | changes
    return recover(graph, params, batches, judge, device, **settings, key=jax.random.key(0))


def floats(params, x):
    x = np.asarray(x)
    for i in range(LAYERS):
        x = x @ np.asarray(params[f"w{i}"]).T + np.asarray(params[f"b{i}"])
        x = x if i == LAYERS - 1 else np.maximum(x, 0)
    return {"y": x}


@pytest.fixture(scope="module")
def whole(job):
    return asked(job)


def test_the_steps_in_their_order(whole):
    names = [step.name for step in whole.steps]
    assert names[:4] == ["FP32", "defaults", "batch_num 2", "batch_num 3"]
    assert names[4] == f"- {WORST}"
    assert names[-3:] == ["+ other ranges", "+ AdaRound", "+ QAT"]
    cosines = [float(s.detail.split()[1].strip(",")) for s in whole.steps[4:-3]]
    assert cosines == sorted(cosines) and cosines[0] < 0.99


def test_a_layer_left_out_is_in_float_and_later_steps_keep_it_there(whole):
    out: set[str] = set()
    for step in whole.steps[4:]:
        if step.name.startswith("- "):
            out.add(f"w{step.name[-1]}")
        for name in (f"w{i}" for i in range(LAYERS)):
            assert step.encodings[name].format.name == ("float16" if name in out else "int4")
    assert out == {f"w{WORST[-1]}"}
    before, after = whole.steps[3], whole.steps[4]
    assert after.metric_float_sim > before.metric_float_sim
    assert after.latency_s > before.latency_s


def test_each_batch_num_has_the_ranges_of_its_batches(job, whole):
    graph, params, batches, _ = job
    for step, count in zip(whole.steps[1:4], (1, 2, 3), strict=True):
        theta = calibrate(lower(graph), params, plan(graph, RULES), batches[:count], observer=SQNR)
        np.testing.assert_allclose(step.encodings["x"].scale, theta["x"].scale, rtol=1e-6)


def test_a_budget_without_room_leaves_every_layer_in(job, whole):
    begun = []

    def progress(what, done, total):
        begun.append(what)
        if what == "+ other ranges":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        asked(job, batches=1, max_latency_s=whole.steps[1].latency_s, progress=progress)
    assert begun == ["FP32", "defaults", "+ other ranges"]


def test_it_stops_at_the_first_step_that_is_good_enough(job):
    found = asked(job, batches=1, run_all=False, max_drop=1e9)
    assert [step.name for step in found.steps] == ["FP32", "defaults"]


def test_the_quality_of_each_layer_by_itself(job):
    """Against float64 on the quantizers' own outputs."""
    graph, params, batches, _ = job
    laid = plan(graph, RULES)
    qparams = bind(calibrate(lower(graph), params, laid, batches), laid)
    found = layer_quality(graph, params, qparams, batches)
    x = np.concatenate([batch["x"] for batch in batches])
    for i in range(LAYERS):
        w, b = (np.asarray(params[f"{n}{i}"], np.float64) for n in "wb")
        data = "x" if i == 0 else f"r{i - 1}"
        seen = np.asarray(qparams[data](jnp.asarray(x)), np.float64)
        y = x.astype(np.float64) @ w.T + b
        lossy = seen @ np.asarray(qparams[f"w{i}"](jnp.asarray(params[f"w{i}"])), np.float64).T + b
        cosine = (y * lossy).sum() / np.sqrt((y**2).sum() * (lossy**2).sum())
        assert found[f"fc{i}"].cosine == pytest.approx(cosine, abs=1e-5)
        x = np.maximum(y, 0).astype(np.float32)
    assert min(found, key=lambda name: found[name].cosine) == WORST


def test_what_is_refused(job):
    with pytest.raises(ConfigError, match=r"no strategy 'acmt'; .*did you mean 'amct'"):
        asked(job, strategy="acmt")
    with pytest.raises(UnsupportedError, match="no convolution"):
        layer_quality(Graph("g", (), ("x",), ("x",), (), {}), {}, {}, [{"x": np.ones((1, 1))}])
