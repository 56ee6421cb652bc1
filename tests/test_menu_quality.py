"""SQNR and cosine of every format of a menu against numpy in float64, by one program."""

import jax.numpy as jnp
import numpy as np
import pytest
from searched import case

from jqnt.errors import ConfigError, DataError
from jqnt.graph.lower import lower
from jqnt.learn.menu_quality import menu_quality, quality_table
from jqnt.learn.trial import trial

MENU = (("int8", "int8"), ("int4", "int8"))


def test_every_branch_of_every_tensor_by_one_program():
    c = case(menu=MENU)
    traces = []
    own = lower(c.graph)

    def apply(params, qparams, inputs, want=c.graph.outputs):
        traces.append(want)
        return own(params, qparams, inputs, want=want)

    batches = [{"x": b["x"]} for b in c.batches]
    found = menu_quality(apply, c.params, c.plan, c.theta, [*batches, *batches])
    assert len(traces) == 2  # the first batch looks at the weights too
    for name, choice in c.plan.choices.items():
        for tensor in choice.tensors:
            values = (
                [c.params[tensor]]
                if tensor in c.params
                else [own(c.params, {}, b, want=(tensor,))[tensor] for b in batches]
            )
            for branch, quality in zip(c.theta[name].branches[tensor], found[tensor], strict=True):
                r = np.concatenate([np.ravel(v) for v in values]).astype(np.float64)
                v = np.concatenate([np.ravel(branch(jnp.asarray(v))) for v in values]).astype(
                    np.float64
                )
                sqnr = 10 * np.log10((r @ r) / ((r - v) @ (r - v)))
                assert quality.sqnr_db == pytest.approx(sqnr, abs=0.01)
                cosine = (r @ v) / np.linalg.norm(r) / np.linalg.norm(v)
                assert quality.cosine == pytest.approx(cosine, abs=1e-5)
    table = quality_table(c.plan, found, trial(c.graph, c.params, c.plan).table)
    name = next(iter(c.plan.choices))
    first = [10 ** (-found[t][0].sqnr_db / 10) for t in c.plan.choices[name].tensors]
    assert table[0, 0] == pytest.approx(sum(first))
    weighted = [any(t.startswith("w") for t in ch.tensors) for ch in c.plan.choices.values()]
    assert (table[weighted, 0] < table[weighted, 1]).all()  # w8a8 before w4a8


def test_bad_input():
    c = case()
    with pytest.raises(ConfigError, match="no choices"):
        menu_quality(lower(c.graph), c.params, c.plan.replace(choices={}), c.theta, [])
    with pytest.raises(DataError, match="no batches"):
        menu_quality(lower(c.graph), c.params, c.plan, c.theta, [])
