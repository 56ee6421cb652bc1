"""Files for QNN: settings of the HTP as its documentation has them, inputs, device outputs."""

import json

import numpy as np
import pytest

from jqnt.device_outputs import read_device_outputs
from jqnt.encodings import Encoding, Encodings
from jqnt.errors import ConfigError, DataError
from jqnt.formats import Integer
from jqnt.interop.qnn import HtpOptions, commands, htp_config, write_inputs


def test_the_backend_extension():
    outer, inner = htp_config("g", HtpOptions(vtcm_mb=4, dlbc=True, soc_model=43, dsp_arch="v73"))
    assert outer["backend_extensions"] == {
        "shared_library_path": "libQnnHtpNetRunExtensions.so",
        "config_file_path": "htp_config.json",
    }
    assert inner["graphs"] == [{"graph_names": ["g"], "vtcm_mb": 4, "O": 3, "dlbc": 1}]
    assert inner["devices"][0]["soc_model"] == 43 and inner["devices"][0]["dsp_arch"] == "v73"
    json.dumps(inner)
    with pytest.raises(ConfigError, match="level is 1, 2 or 3, not 4"):
        HtpOptions(optimization=4)


def test_the_commands_name_the_files():
    text = commands("model", ["image"])
    for word in ("--quantization_overrides quantization_overrides.json", "input_list.txt",
                 "--config_file htp_backend_extensions.json", "'image' NCHW"):  # fmt: skip
        assert word in text


def test_inputs_are_raw_and_listed(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    write_inputs(
        tmp_path, [{"a/b": x, "ids": np.int64([[7]])}, {"a/b": -x, "ids": np.int64([[8]])}]
    )
    lines = (tmp_path / "input_list.txt").read_text().splitlines()
    assert lines[0] == "a/b:=inputs/0000/a_b.raw ids:=inputs/0000/ids.raw" and len(lines) == 2
    back = np.fromfile(tmp_path / "inputs/0001/a_b.raw", "<f4")
    np.testing.assert_array_equal(back, -x.reshape(-1))
    with pytest.raises(DataError, match="at least one"):
        write_inputs(tmp_path, [])


def _results(folder, count=2):
    for i in range(count):
        place = folder / f"Result_{i}"
        place.mkdir()
        np.full(4, i, "<f4").tofile(place / "_layer_out.raw")
        np.full(4, 128 + i, np.uint8).tofile(place / "y_native.raw")


ENCODINGS = Encodings({"y": Encoding(Integer(8), np.float32(0.5), np.int64(128))})


def test_what_a_device_wrote(tmp_path):
    _results(tmp_path, 12)
    found = read_device_outputs(tmp_path, ["/layer/out", "y"], ENCODINGS)
    np.testing.assert_array_equal(found["/layer/out"], np.repeat(np.float32(range(12)), 4))
    np.testing.assert_array_equal(found["y"], np.repeat(np.float32(range(12)) / 2, 4))


def test_wrong_results(tmp_path):
    with pytest.raises(DataError, match="no folders Result_0"):
        read_device_outputs(tmp_path, ["y"], ENCODINGS)
    _results(tmp_path)
    with pytest.raises(DataError, match="no tensor has that name"):
        read_device_outputs(tmp_path, ["y"], ENCODINGS)
    (tmp_path / "Result_1" / "y_native.raw").unlink()
    with pytest.raises(DataError, match="'y' is in 1 of 2 results"):
        read_device_outputs(tmp_path, ["/layer/out", "y"], ENCODINGS)
    (tmp_path / "Result_1" / "_layer_out.raw").write_bytes(b"123")
    with pytest.raises(DataError, match="3 bytes are no whole float32"):
        read_device_outputs(tmp_path, ["/layer/out", "y"], ENCODINGS)
