"""Scales and rounding chosen together, against all codes under all factors."""

import numpy as np
import pytest
from test_rounding import IN, KEY, LAYER, OUT, error64, exhaustive64, problem

from jqnt.formats import Granularity
from jqnt.learn.best_scale import FACTORS, _scaled, best_scale, learn_scale_and_rounding
from jqnt.learn.rounding import learn_rounding


def ratio(new, old):
    return np.asarray(new.scale) / np.asarray(old.scale)


@pytest.mark.parametrize("bits", [2, 3])
def test_near_the_best_of_all_codes_and_factors(bits):
    gaps, gains = [], []
    for seed in range(2):
        moments, w, quantizer, x, lossy = problem(seed, bits)
        found = learn_scale_and_rounding(LAYER, moments, w, quantizer, key=KEY).quantizer
        factors = ratio(found, quantizer)
        assert all(np.isclose(factors[:, None], FACTORS, rtol=1e-4).any(1))
        error = error64(x, lossy, w, found(w))
        best = np.min([exhaustive64(x, lossy, w, _scaled(quantizer, f)) for f in FACTORS], 0)
        assert (error >= best * (1 - 1e-4)).all()
        gaps.append(error.sum() / best.sum() - 1)
        alone = learn_rounding(LAYER, moments, w, quantizer, key=KEY).quantizer
        gains.append(error.sum() / error64(x, lossy, w, alone(w)).sum())
    assert np.mean(gaps) < 0.2
    assert np.mean(gains) < 0.95


def test_one_scale_for_the_tensor_gets_one_factor():
    moments, w, quantizer, x, lossy = problem(0, 3, granularity=Granularity())
    found = best_scale(LAYER, moments, w, quantizer, key=KEY)
    assert np.shape(found.scale) == () and np.isclose(ratio(found, quantizer), FACTORS).any()
    errors = {}
    for factor in (*FACTORS, float(ratio(found, quantizer))):
        learned = learn_rounding(LAYER, moments, w, _scaled(quantizer, factor), steps=0, key=KEY)
        errors[factor] = error64(x, lossy, w, learned.quantizer(w)).sum()
    assert errors[float(ratio(found, quantizer))] <= min(errors.values()) * (1 + 1e-5)


def test_blocks_of_a_channel_share_a_factor():
    moments, w, quantizer, *_ = problem(0, 3)
    blocks = quantizer.replace(
        scale=np.repeat(np.asarray(quantizer.scale)[:, None], 3, 1),
        zero_point=np.zeros((OUT, 3), np.float32),
        granularity=Granularity(1, IN // 3),
    )
    found = ratio(best_scale(LAYER, moments, w, blocks, key=KEY), blocks)
    assert found.shape == (OUT, 3)
    np.testing.assert_allclose(found, found[:, :1].repeat(3, 1), rtol=1e-6)
