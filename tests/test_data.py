"""Data at the door: what is taken, what is refused and in which words."""

import sys
import types

import numpy as np
import pytest

from jqnt.data import load_data, load_function, split_batches
from jqnt.errors import ConfigError, DataError
from jqnt.graph.ir import Graph, TensorInfo


def graph_of(**inputs) -> Graph:
    info = {n: TensorInfo(np.dtype(t), shape) for n, (t, shape) in inputs.items()}
    return Graph("g", (), tuple(inputs), (), info=info)


IMAGE = graph_of(image=("float32", ("N", 1, 4, 4)))
TOKENS = graph_of(ids=("int64", ("N", "T")), mask=("int64", ("N", "T")))


def images(count=10, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 1, 4, 4)).astype(np.float32)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_a_file_is_cut_into_equal_batches(tmp_path):
    x, y = images(30), np.arange(30)
    data = load_data(save(tmp_path / "d.npz", image=x, labels=y), IMAGE, batch_size=12)
    batches = list(data)
    assert [len(b["image"]) for b in batches] == [10, 10, 10]  # 10 divides 30, 12 does not
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in batches]), x)
    np.testing.assert_array_equal(np.concatenate([b["labels"] for b in batches]), y)
    assert data.samples == 30
    assert [len(b["image"]) for b in data] == [10, 10, 10]  # a second time


def test_a_prime_number_of_samples_leaves_a_smaller_batch(tmp_path):
    data = load_data(save(tmp_path / "d.npz", image=images(31)), IMAGE, batch_size=12)
    assert [len(b["image"]) for b in data] == [12, 12, 7]


def test_a_model_of_one_input_takes_any_name_and_float_type(tmp_path):
    x = images().astype(np.float16)
    (batch,) = load_data(save(tmp_path / "d.npz", anything=x, labels=np.arange(10)), IMAGE)
    assert set(batch) == {"image", "labels"}
    assert batch["image"].dtype == np.float32
    np.testing.assert_array_equal(batch["image"], x)


def test_a_fixed_batch_is_kept(tmp_path):
    graph = graph_of(image=("float32", (2, 1, 4, 4)))
    data = load_data(save(tmp_path / "d.npz", image=images(6)), graph)
    assert [len(b["image"]) for b in data] == [2, 2, 2]
    with pytest.raises(DataError, match=r"shape \[5, 1, 4, 4\]; the model takes \[2, 1, 4, 4\]"):
        load_data(save(tmp_path / "e.npz", image=images(5)), graph)


def test_integers_are_converted_where_they_fit(tmp_path):
    ids = np.arange(12, dtype=np.int32).reshape(3, 4)
    (batch,) = load_data(save(tmp_path / "d.npz", ids=ids, mask=ids), TOKENS)
    assert batch["ids"].dtype == np.int64


def test_scalars_go_with_every_batch():
    batches = split_batches({"x": np.arange(5), "rate": np.asarray(16000)}, 2)
    assert [(len(b["x"]), int(b["rate"])) for b in batches] == [(2, 16000), (2, 16000), (1, 16000)]


def test_the_digest_is_of_values_and_not_of_the_file(tmp_path):
    x = images()
    np.savez_compressed(tmp_path / "b.npz", image=x)
    a = load_data(save(tmp_path / "a.npz", image=x), IMAGE)
    b = load_data(tmp_path / "b.npz", IMAGE)
    c = load_data(save(tmp_path / "c.npz", image=x + np.float32(1e-3)), IMAGE)
    assert a.digest == b.digest != c.digest


BAD = {
    "name": ({"imaeg": images(), "x": images()}, r"'imaeg' is no input; did you mean 'image'"),
    "missing": ({"labels": np.arange(3)}, r"no array for input 'image'"),
    "shape": ({"image": images()[:, 0]}, r"shape \[10, 4, 4\]; the model takes \[N, 1, 4, 4\]"),
    "type": ({"image": np.zeros((3, 1, 4, 4), np.uint8)}, r"type uint8; the model takes float32"),
    "nan": ({"image": np.full((3, 1, 4, 4), np.nan)}, r"48 values .* first at \[0, 0, 0, 0\]"),
    "huge": ({"image": np.full((1, 1, 4, 4), 1e60)}, r"NaN or infinite"),
    "empty": ({"image": images(0)}, r"holds no samples"),
    "counts": ({"image": images(4), "labels": np.arange(3)}, r"image 4, labels 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_in_one_line(case, tmp_path):
    arrays, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        load_data(save(tmp_path / "bad.npz", **arrays), IMAGE)
    assert "bad.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_symbols_hold_across_inputs(tmp_path):
    path = save(tmp_path / "d.npz", ids=np.zeros((3, 4), int), mask=np.zeros((3, 5), int))
    with pytest.raises(DataError, match=r"input 'mask' has shape \[3, 5\]"):
        load_data(path, TOKENS)


def test_broken_files_are_refused(tmp_path):
    good = save(tmp_path / "good.npz", image=images(50)).read_bytes()
    (tmp_path / "cut.npz").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "none.npz").write_bytes(b"")
    np.save(tmp_path / "bare.npy", images())
    np.savez(tmp_path / "pickle.npz", image=np.asarray([{}, None], dtype=object))
    for name in ("cut.npz", "text.npz", "none.npz", "bare.npy", "pickle.npz", "absent.npz"):
        with pytest.raises(DataError, match=name):
            load_data(tmp_path / name, IMAGE)


@pytest.fixture
def module(monkeypatch):
    made = types.ModuleType("user_data")
    monkeypatch.setitem(sys.modules, "user_data", made)
    return made


def test_a_function_yields_batches(module):
    module.batches = lambda: ({"image": images(n, n)} for n in (3, 3, 2))
    data = load_data("user_data:batches", IMAGE)
    assert data.samples == 8
    assert [len(b["image"]) for b in data] == [len(b["image"]) for b in data] == [3, 3, 2]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: 1 / 0, "user_data:batches raised ZeroDivisionError: division by zero"),
        (lambda: [images()], "batch 0 is of type ndarray"),
        (list, "no samples"),
        (lambda: [{"image": images()}, {"image": images() * np.nan}], "batch 1: array 'image'"),
    ],
)
def test_a_function_that_fails(module, function, message):
    module.batches = function
    with pytest.raises(DataError, match=message):
        load_data("user_data:batches", IMAGE)


def test_an_unknown_function_names_the_nearest(module):
    module.batches = list
    with pytest.raises(ConfigError, match="no function 'batchs'; did you mean 'batches'"):
        load_function("user_data:batchs", "data")
    with pytest.raises(ConfigError, match="no module named 'no_such_module'"):
        load_function("no_such_module:f", "metric")
