"""Profiles: every number has a source, every mistake one line; modes; advice of CPUs."""

import numpy as np
import pytest
from test_npu import chain

import jqnt.npu as npu
from jqnt.errors import ConfigError
from jqnt.npu.advice import advise, losing_groups, peak_memory_bytes
from jqnt.npu.devices import sources
from jqnt.npu.knobs import paths_of
from jqnt.npu.modes import in_mode

WANTED = """cpu-arm-dotprod cpu-arm-neon cpu-x86-avx2 cpu-x86-vnni embedded-demo ethos-u55-128
ethos-u65-512 ethos-u85-512 generic-hexagon generic-roofline qcs6490 qcs8275 qcs9075 sa8295p
snapdragon-8-elite snapdragon-8-elite-gen-5 snapdragon-8-gen-1 snapdragon-8-gen-2
snapdragon-8-gen-3 snapdragon-8-gen-3-guide snapdragon-x-elite"""


@pytest.mark.parametrize("name", WANTED.split())
def test_every_number_of_a_profile_has_a_source(name):
    target, known = npu.device(name), sources(name)
    for path, value in paths_of(target).items():
        assert known[path], path
        assert np.isfinite(value) and value >= 0
    assert target.name == name
    assert target.pairs


def test_the_guide_has_the_figures_of_the_guide():
    guide = npu.device("snapdragon-8-gen-3-guide")
    assert guide.macs_per_s["w4a8"] == 72e12 / 2
    assert guide.macs_per_s["w8a8"] == 36e12 / 2
    assert guide.macs_per_s["w8a16"] == 18e12 / 2
    effective = guide.dram_bytes_per_s * guide.dram_efficiency
    assert effective == pytest.approx(50e9, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("this is = = not toml", "not a TOML file"),
        ('base = "_flatt"', "not a profile"),
        ('base = "generic-roofline"\nvtcm = { value = 1, source = "x" }', "vtcm_bytes"),
        ('base = "generic-roofline"\nvtcm_bytes = 5', "source"),
        ('base = "generic-roofline"\nvtcm_bytes = { value = -5, source = "x" }', "not a number"),
        ('base = "generic-roofline"\n[vector_cost]\npol = { value = 1, source = "x" }', "pool"),
        ('base = "generic-roofline"\npairs = ["w3a8"]', "w3a8"),
        ('base = "generic-roofline"\npairs = ["eight"]', "no pair"),
        ('base = "_flat"', "missing"),
        ('base = "generic-roofline"\n[array]\nsource = "x"\nmacs = 4', "array"),
    ],
)
def test_a_bad_profile_is_one_line(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        npu.device(path)
    assert str(path) in str(error.value)


def test_a_profile_of_ones_own_lies_over_its_base(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "generic-roofline"\nvtcm_bytes = { value = 7, source = "mine" }')
    mine = npu.device(path)
    assert (mine.vtcm_bytes, mine.name) == (7, "generic-roofline")
    assert mine.macs_per_s == npu.device("generic-roofline").macs_per_s
    with pytest.raises(ConfigError, match="cannot be read"):
        npu.device(tmp_path / "nowhere.toml")


def test_modes_slow_engines_and_memory():
    work = npu.workload(*chain([(64, 3, 1, 1), (512, 1, 1, 1)]))
    target = npu.device("snapdragon-8-gen-3")
    times = [float(npu.latency(work, "w8a8", in_mode(target, mode))) for mode, *_ in target.modes]
    assert times == sorted(times)
    assert times[0] == pytest.approx(float(npu.latency(work, "w8a8", target)))
    with pytest.raises(ConfigError, match="power_saver"):
        in_mode(target, "powersaver")


def test_integers_can_lose_on_a_cpu_without_dot_products():
    work = npu.workload(*chain([(64, 3, 1, 1), (64, 3, 1, 1)]))
    assert {name for name, _ in losing_groups(work, "w8a8", npu.device("cpu-arm-neon"))}
    assert not losing_groups(work, "w8a8", npu.device("cpu-arm-dotprod"))
    topics = {a.topic for a in advise(work, "w8a8", npu.device("cpu-arm-neon"))}
    assert "loser" in topics


def test_advice_names_what_falls_back_and_what_does_not_pay():
    work = npu.workload(*chain([(64, 3, 1, 1), (512, 1, 1, 1)], size=8))
    found = {a.topic: a for a in advise(work, "w4a8", npu.device("snapdragon-8-gen-3"))}
    assert found["narrow"].groups == ("conv0",)
    assert found["layout"].groups == ("conv0", "conv1")
    weights = 64 * 27 + 512 * 64
    live = 8 * 8 * (64 + 512)
    assert peak_memory_bytes(work, 8, 4) == pytest.approx(live + weights / 2)
