"""AMCT's record.txt and quant.cfg: the documented words, round trips, and files that are wrong."""

import re

import numpy as np
import pytest

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import ConfigError, DataError, UnsupportedError
from jqnt.formats import Granularity, Integer
from jqnt.interop.amct import from_amct_record, to_amct_record
from jqnt.interop.amct_config import read_amct_config
from jqnt.interop.amct_quant_cfg import read_quant_cfg, to_amct_config, to_quant_cfg
from jqnt.interop.prototext import Word, dump, parse
from tests.test_aimet import _equal, _grid, _model

S8, U8 = Integer(8, signed=True), Integer(8)
ENCODINGS = Encodings(
    {
        "x": _grid(S8, 0.0392, -128),
        "w": _grid(S8, [0.00252, 0.00178], 0, Granularity(0)),
        "f": _grid(Integer(16, signed=True), 0.001, 7),
        "m": _grid(S8, [0.1, 0.2, 0.3, 0.4, 0.5], 0, Granularity(1)),
    }
)


def test_the_words_of_a_record():
    text = to_amct_record(_model()[0], ENCODINGS)
    first = " ".join(text.split("record {")[1].split())
    assert first == (
        'key: "n_c" value { scale_d: 0.0392000005 offset_d: -128 scale_w: 0.00252000010 '
        "scale_w: 0.00178000005 offset_w: 0 offset_w: 0 } }"
    ).replace("0.00252000010", "0.0025200001")
    assert 'act_type: "INT16"' in text


def test_records_read_back_are_equal():
    graph, _ = _model()
    back = from_amct_record(to_amct_record(graph, ENCODINGS), graph)
    assert set(back) == set(ENCODINGS)
    assert all(_equal(back[name], e) for name, e in ENCODINGS.items())


def test_unsigned_grids_are_shifted():
    graph, _ = _model()
    shifted = {**ENCODINGS.tensors, "x": _grid(U8, 0.0392, 0)}
    assert to_amct_record(graph, Encodings(shifted)) == to_amct_record(graph, ENCODINGS)


@pytest.mark.parametrize(
    "change, message",
    [
        (("n_c", "n_d"), "no layer 'n_d'; did you mean .*'n_c'"),
        (("scale_d", "scale_e"), "layer 'n_c': no key 'scale_d'"),
        (("0.0392000005", "-1"), "layer 'n_c': a scale must be positive"),
        (("-128", "-129"), "offset_d -129 is outside"),
        (("-128", '"a"'), "'offset_d' holds"),
        (("offset_w: 0", "offset_w: 1"), "'offset_w' must hold a zero"),
        (("record {", "record ["), "field 'record' has no value"),
        (("record", "recrod"), "unknown field 'recrod'"),
    ],
    ids=range(8),
)
def test_malformed_records(change, message):
    graph, _ = _model()
    text = to_amct_record(graph, ENCODINGS)
    with pytest.raises(DataError, match=message):
        from_amct_record(text.replace(change[0], change[1], 1), graph)


def test_both_configurations_say_the_same():
    graph, _ = _model()
    partly = Encodings({k: e for k, e in ENCODINGS.items() if k in ("x", "w")})
    for encodings in (ENCODINGS, partly):
        short = read_quant_cfg(to_quant_cfg(graph, encodings), graph)
        long = read_amct_config(to_amct_config(graph, encodings), graph)
        assert short.rules == long.rules and short.batch_num == long.batch_num
    assert any(rule.format == "float32" and rule.name == "n_y" for rule in long.rules)


def test_overrides_win_over_types_and_common_settings():
    text = """
      # widths and rounding
      common_config { arq_quantize { channel_wise: true } ifmr_quantize { asymmetric: false } }
      override_layer_types { layer_type: "Conv" calibration_config {
        ada_quantize { num_iteration: 100 channel_wise: true } } }
      override_layer_configs { layer_name: 'n_y'
        calibration_config { arq_quantize < channel_wise: false >
          hfmg_quantize { dst_type: INT16 } } }
    """
    found = read_quant_cfg(text, _model()[0])
    rules = {(r.name, r.role): r for r in found.rules}
    assert found.learned_rounding == ("n_c",)
    assert rules["n_y", "weight"].granularity == "tensor"
    assert rules["f", "activation"].format == "int16" and rules["f", "activation"].symmetric
    assert rules["x", "activation"].symmetric


@pytest.mark.parametrize(
    "text, message",
    [
        ("batch_nmu: 1", "unknown field 'batch_nmu'; did you mean 'batch_num'"),
        ('skip_layers: "n_z"', "no layer 'n_z'"),
        ("batch_num: 0", "batch_num is 0"),
        ("common_config { arq { } }", "unknown field 'arq'"),
        ("override_layer_configs { }", "needs one layer_name"),
        ("common_config {", "it ends early"),
    ],
)
def test_malformed_configurations(text, message):
    with pytest.raises(ConfigError, match=message):
        read_quant_cfg(text, _model()[0])


def test_protobuf_text_as_the_library_reads_it():
    """google.protobuf, which onnx brings, reads what we write; we read what it writes."""
    from google.protobuf import text_format
    from onnx import AttributeProto

    proto = AttributeProto(name='a "b"\n', f=0.1, ints=[1, -2], type=AttributeProto.INTS)
    ours = parse(text_format.MessageToString(proto), "text")
    fields = [(k, v) for k, v in ours if k == "ints"]
    assert fields == [("ints", 1), ("ints", -2)]
    assert dict(ours)["type"] == Word("INTS") and dict(ours)["name"] == 'a "b"\n'
    assert np.float32(dict(ours)["f"]) == np.float32(0.1)
    assert text_format.Parse(dump(ours), AttributeProto()) == proto


def test_what_amct_does_not_have():
    graph, _ = _model()
    grid = _grid(S8, [[0.1, 0.2, 0.3, 0.4, 0.5]], 0, Granularity(0, 2))
    with pytest.raises(UnsupportedError, match="weight 'm': AMCT has scales per output"):
        to_amct_record(graph, Encodings({**ENCODINGS.tensors, "m": grid}))
    wide = Encoding(Integer(4, signed=True), np.float32(1), np.int64(0))
    with pytest.raises(UnsupportedError, match=re.escape("tensor 'x': AMCT has inputs of 8 or")):
        to_amct_record(graph, Encodings({**ENCODINGS.tensors, "x": wide}))
