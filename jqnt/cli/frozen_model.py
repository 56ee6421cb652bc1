"""A quantized model from the command line: a folder, or an ONNX model and an encodings file."""

import json
from pathlib import Path

from jqnt.encodings import Encodings
from jqnt.errors import ConfigError, DataError
from jqnt.frozen import Frozen, load_frozen
from jqnt.interop.aimet_read import from_aimet

__all__ = ["frozen_model"]


def frozen_model(path: Path, encodings: Path | None = None) -> Frozen:
    """What lies at `path`, with the encodings of a file of AIMET or QNN, or of ours, in place of
    its own.

    Raises ConfigError for a model without encodings, DataError for a file that is malformed or of
    another model.
    """
    frozen = load_frozen(path)
    if encodings is not None:
        loaded = _loaded(encodings, frozen)
        frozen = Frozen(frozen.graph, frozen.reference, frozen.params, loaded)
    if not frozen.encodings:
        raise ConfigError(f"{path} is a float model; quantize it first (jqnt quantize --out DIR)")
    return frozen


def _loaded(path: Path, frozen: Frozen) -> Encodings:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(document, dict) or "jqnt_encodings" not in document:
        return from_aimet(path, frozen.graph, frozen.params)
    loaded = Encodings.load(path)
    for name in loaded:
        frozen.graph.check(name)
    return loaded
