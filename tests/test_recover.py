"""The staircase on a small network: order, stopping, what it promises, and what it refuses."""

import jax
import numpy as np
import onnxruntime
import pytest
from tiny_model import tiny_model

from jqnt import npu
from jqnt.errors import BudgetError, ConfigError, DataError
from jqnt.graph.onnx_import import import_onnx
from jqnt.interop.onnx_qdq import to_qdq
from jqnt.learn.recover import recover
from jqnt.metrics import evaluator, metric_named

RNG = np.random.default_rng(1)
NAMES = ["FP32", "FP16", "W8A8", "+ equalization", "+ AdaRound", "mixed precision", "+ QAT"]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """(graph, params, calibration, evaluation batches, device, fastest and slowest latency)."""
    graph, params, _ = import_onnx(tiny_model(tmp_path_factory.mktemp("m") / "tiny.onnx"))
    x = RNG.normal(size=(128, 1, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path_factory.getbasetemp() / "m0" / "tiny.onnx")
    labels = session.run(None, {"image": x})[0].argmax(1)
    batches = [{"image": x[i : i + 64], "labels": labels[i : i + 64]} for i in (0, 64)]
    device = npu.device("embedded-demo")
    table = npu.tables(npu.workload(graph, params), device)
    return graph, params, batches, device, [float(t) for t in npu.latency_range(table)]


def judge(job):
    graph, _, batches, *_ = job
    return evaluator(metric_named("top1"), batches, graph.inputs)


@pytest.fixture(scope="module")
def whole(job):
    graph, params, batches, device, (fast, slow) = job
    return recover(
        graph,
        params,
        [{"image": b["image"]} for b in batches],
        judge(job),
        device,
        max_drop=2.0,
        max_latency_s=fast + 0.6 * (slow - fast),
        run_all=True,
        key=jax.random.key(0),
    )


def test_all_steps_run_in_order_with_their_figures(whole, job):
    assert [step.name for step in whole.steps] == NAMES
    assert whole.steps[0].metric == 100.0
    for step in whole.steps[2:]:
        assert step.metric_integer is not None
        assert step.latency_s is not None and step.latency_s > 0
        assert step.size_bytes < whole.steps[0].size_bytes
    mixed = whole.steps[5]
    assert mixed.latency_s <= whole.max_latency_s * (1 + 1e-6)
    price = npu.latency(npu.workload(mixed.graph, mixed.reference), mixed.encodings, job[3])
    np.testing.assert_allclose(mixed.latency_s, price, rtol=1e-6)


def test_the_metric_is_that_of_the_exported_model(whole, job):
    """onnxruntime on the QDQ export of every quantized step gives its figure."""
    for step in whole.steps[2:]:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        model = to_qdq(step.graph, step.params, step.encodings)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        found = judge(job)(lambda inputs, s=session: {"logits": s.run(None, dict(inputs))[0]})
        # a tie between two classes may fall the other way
        assert abs(found - step.metric_float_sim) <= 100 / 128 + 1e-6, step.name


def test_it_stops_at_the_first_step_that_is_good_enough(whole, job):
    graph, params, batches, device, _ = job
    w8a8 = whole.steps[2]
    found = recover(
        graph,
        params,
        batches,
        judge(job),
        device,
        max_drop=whole.steps[0].metric - w8a8.metric,
        max_latency_s=w8a8.latency_s,
        key=jax.random.key(0),
    )
    assert [step.name for step in found.steps] == NAMES[:3]
    assert found.chosen is found.steps[-1] and found.meets(found.chosen)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"max_latency_s": 1e-9}, BudgetError, r"the minimum is [\d.e-]+ ms"),
        ({"max_latency_s": 0.0}, ConfigError, "positive"),
        ({"max_drop": -1.0}, ConfigError, "at least 0 points"),
        ({"calibration": []}, DataError, "empty"),
        ({"calibration": [{"image": np.full((2, 1, 8, 8), np.nan, np.float32)}]}, DataError, "NaN"),
    ],
)
def test_hopeless_requests_cost_no_work(job, changed, error, message):
    graph, params, batches, device, _ = job
    asked = {"calibration": batches, "max_drop": 1.0, "max_latency_s": None} | changed
    calibration = asked.pop("calibration")

    def never(run):
        raise AssertionError("it was evaluated")

    with pytest.raises(error, match=message):
        recover(graph, params, calibration, never, device, **asked, key=jax.random.key(0))
