"""Frozen models on disk: what comes back computes the same; a failed write leaves nothing."""

import numpy as np
import pytest
from tiny_model import tiny_model

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import ConfigError, DataError
from jqnt.formats import FP16, Granularity, Integer
from jqnt.frozen import Frozen, check_out, load_frozen, replacing, save_frozen
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx


@pytest.fixture
def model(tmp_path) -> Frozen:
    graph, params, _ = import_onnx(tiny_model(tmp_path / "tiny.onnx"))
    rounded = {**params, "fc.weight": np.round(params["fc.weight"])}
    channel = Encoding(
        Integer(4, signed=True), np.ones(3, np.float32), np.zeros(3, int), Granularity(0)
    )
    return Frozen(graph, params, rounded, Encodings({"fc.weight": channel, "r": Encoding(FP16)}))


def test_it_comes_back_whole(model, tmp_path):
    save_frozen(tmp_path / "out", model)
    for path in (tmp_path / "out", tmp_path / "out" / "frozen"):
        back = load_frozen(path)
        x = {"image": np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32)}
        for params in ("reference", "params"):
            a = lower(model.graph)(getattr(model, params), {}, x)["logits"]
            b = lower(back.graph)(getattr(back, params), {}, x)["logits"]
            np.testing.assert_array_equal(a, b)
        assert back.encodings["fc.weight"].granularity == Granularity(0)
        assert back.encodings["r"].format == FP16


def test_a_model_file_is_its_own_reference(tmp_path):
    back = load_frozen(tiny_model(tmp_path / "tiny.onnx"))
    assert back.params is back.reference and not back.encodings


def test_what_is_missing_or_broken_is_named(model, tmp_path):
    with pytest.raises(DataError, match="no frozen model in this folder"):
        load_frozen(tmp_path)
    save_frozen(tmp_path / "out", model)
    (tmp_path / "out" / "frozen" / "weights.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"weights\.npz: cannot be read"):
        load_frozen(tmp_path / "out")


def test_new_files_replace_old_ones_and_leave_the_others(tmp_path):
    out = tmp_path / "a" / "out"
    for text in ("old", "new"):
        with replacing(out) as beside:
            (beside / "f").write_text(text)
            (beside / "folder").mkdir()
            (beside / "folder" / text).touch()
        (out / "mine").touch()
    assert (out / "f").read_text() == "new"
    assert sorted(p.name for p in out.rglob("*")) == ["f", "folder", "mine", "new"]
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_a_failure_leaves_no_trace(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "out") as beside:
        (beside / "f").write_text("half")
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="file is a file"):
            check_out(out)
