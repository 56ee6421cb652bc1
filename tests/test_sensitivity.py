"""Trials and sensitivities against the plain interpreter with the same quantizers."""

import jax
import numpy as np
import pytest
from compilations import compilations
from searched import case

from jqnt.errors import ConfigError, DataError
from jqnt.graph.lower import lower
from jqnt.learn import divergence
from jqnt.learn.decide import decide_plan, decide_theta
from jqnt.learn.sensitivity import choice_losses, choice_table, tensor_losses, tensor_table
from jqnt.learn.trial import FLOAT, trial
from jqnt.plan import bind


@pytest.fixture(scope="module")
def tried():
    """The case, its trial, its batches with targets, the programs compiled before."""
    before = compilations("trial_losses")
    c = case()
    batches = divergence.with_targets(lower(c.graph), c.params, c.batches)
    return c, trial(c.graph, c.params, c.plan), batches, before


def plainly(c, qparams, batches, measure=divergence.output_mse):
    """The mean divergence, run without segments, selections or jit of them."""
    apply = lower(c.graph)
    losses = [float(measure(apply(c.params, qparams, {"x": b["x"]}), b)) for b in batches]
    return np.mean(losses)


def test_the_network_is_cut_where_all_flows_through_one_tensor(tried):
    c, own, *_ = tried
    assert set(own.segments.cuts) <= {"ra", "rs", "rd", "p", "f"}
    assert len(own.segments.cuts) >= 2
    first = own.segments.first
    assert first["x"] == first["wa"] == 0 and first["wg"] == len(own.segments.cuts)
    inputs = {"x": c.batches[0]["x"]}
    *_, outputs = own.segments.run(c.params, {}, inputs)
    np.testing.assert_allclose(outputs["y"], lower(c.graph)(c.params, {}, inputs)["y"], rtol=1e-5)


def test_every_assignment_has_the_loss_of_its_plan(tried):
    c, own, batches, _ = tried
    rng = np.random.default_rng(1)
    counts = [len(choice.options) for choice in c.plan.choices.values()]
    picks = [np.array([rng.integers(n) for n in counts]) for _ in range(6)]
    rows = np.stack([own.branches(a) for a in picks])
    base = own.branches(np.full(len(counts), FLOAT))
    found = own.losses(c.params, c.theta, rows, base, batches)
    again = own.losses(c.params, c.theta, rows, rows[2], batches)
    np.testing.assert_allclose(found, again, rtol=1e-5)
    for assignment, value in zip(picks, found, strict=True):
        names = dict(zip(c.plan.choices, assignment.tolist(), strict=True))
        decided = decide_plan(c.plan, names).replace(biases={})
        qparams = bind(decide_theta(c.theta, c.plan, names), decided)
        assert plainly(c, qparams, batches) == pytest.approx(value, rel=1e-4)


def test_one_program_serves_all_tensors_and_formats(tried):
    c, own, batches, before = tried
    steps = []
    alone = tensor_losses(
        own, c.params, c.theta, batches, lambda done, of: steps.append((done, of))
    )
    assert compilations("trial_losses") == before + 1
    assert steps[-1][0] == steps[-1][1]
    fixed = {name: q for name, q in c.theta.items() if name not in c.plan.choices}
    for name in ("wa", "ra", "wg"):
        choice = next(x for x in c.plan.choices.values() if name in x.tensors)
        branches = c.theta[next(n for n, x in c.plan.choices.items() if x is choice)].branches
        assert len(alone[name]) == len(branches[name])
        for quantizer, value in zip(branches[name], alone[name], strict=True):
            qparams = {**fixed, name: quantizer}
            assert plainly(c, qparams, batches) == pytest.approx(value, rel=1e-3, abs=1e-9)
    table = tensor_table(own, alone)
    k = 1
    for row, choice in enumerate(c.plan.choices.values()):
        expected = sum(alone[t][b] for t, b in zip(choice.tensors, own.table[row][k], strict=True))
        assert table[row, k] == pytest.approx(expected)


def test_losses_around_a_base(tried):
    c, own, batches, before = tried
    base = np.zeros(len(c.plan.choices), int)
    losses = choice_losses(own, c.params, c.theta, base, batches)
    direct = own.losses(c.params, c.theta, own.branches(base), own.branches(base), batches)[0]
    np.testing.assert_allclose(losses[np.arange(len(base)), base], direct, rtol=1e-6)
    changed = base.copy()
    changed[2] = 1
    row = own.branches(changed)
    value = own.losses(c.params, c.theta, row, row, batches)[0]
    assert losses[2, 1] == pytest.approx(value, rel=1e-5)
    table = choice_table(losses, base)
    rows = np.arange(len(base))
    assert table[rows, base].sum() == pytest.approx(direct)
    assert table[rows, changed].sum() == pytest.approx(value)
    assert compilations("trial_losses") == before + 1


def test_divergences_against_numpy():
    rng = np.random.default_rng(2)
    y, target = rng.normal(size=(2, 6, 5)).astype(np.float32)
    labels = rng.integers(5, size=6)
    batch = {"target:y": target, "labels": labels}
    outputs = {"y": jax.numpy.asarray(y)}

    def softmax(v):
        e = np.exp(v.astype(np.float64))
        return e / e.sum(-1, keepdims=True)

    p, q = softmax(target), softmax(y)
    assert float(divergence.output_mse(outputs, batch)) == pytest.approx(
        ((y - target) ** 2).mean() / (target**2).mean(), rel=1e-5
    )
    assert float(divergence.kl(outputs, batch)) == pytest.approx(
        (p * np.log(p / q)).sum(-1).mean(), rel=1e-4
    )
    assert float(divergence.cross_entropy(outputs, batch)) == pytest.approx(
        -np.log(q[np.arange(6), labels]).mean(), rel=1e-5
    )
    with pytest.raises(DataError, match="target:y"):
        divergence.kl(outputs, {})
    with pytest.raises(DataError, match="labels"):
        divergence.cross_entropy(outputs, {})


def test_bad_input(tried):
    c, own, *_ = tried
    with pytest.raises(ConfigError, match="no choices"):
        trial(c.graph, c.params, c.plan.replace(choices={}))
    with pytest.raises(ConfigError, match="2 options for"):
        own.branches([0, 1])
    with pytest.raises(DataError, match="at least one"):
        own.losses(c.params, c.theta, own.branches([0] * 6), own.branches([0] * 6), [])
    names = dict.fromkeys(c.plan.choices, 0)
    with pytest.raises(ConfigError, match="no option is given"):
        decide_plan(c.plan, {k: v for k, v in names.items() if k != "ra"})
    with pytest.raises(ConfigError, match="did you mean 'ra'"):
        decide_plan(c.plan, {**names, "raa": 1})
    with pytest.raises(ConfigError, match="options 0 to 4"):
        decide_theta(c.theta, c.plan, {**names, "ra": 5})
