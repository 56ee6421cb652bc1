"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from jqnt.learn.roundings import ROUNDINGS

__all__ = [
    "Activations",
    "ArithmeticName",
    "AsJson",
    "BatchSize",
    "Calib",
    "Device",
    "EncodingsFile",
    "EncodingsVersion",
    "Evaluation",
    "FrozenPath",
    "Key",
    "MaxLatency",
    "MetricName",
    "Model",
    "OptionalEvaluation",
    "Out",
    "RoundingName",
    "RulesFile",
    "Scales",
    "Target",
    "Weights",
]

_DATA = "an .npz file (arrays named after the inputs, optional labels) or module:function"

Model = Annotated[Path, typer.Argument(help="an ONNX model", show_default=False)]
FrozenPath = Annotated[
    Path,
    typer.Argument(
        help="a folder that quantize, search or recover wrote (or an ONNX model)",
        show_default=False,
    ),
]
Calib = Annotated[str, typer.Option(help=f"calibration data: {_DATA}", show_default=False)]
Evaluation = Annotated[
    str, typer.Option("--eval", help=f"evaluation data: {_DATA}", show_default=False)
]
OptionalEvaluation = Annotated[
    str | None, typer.Option("--eval", help=f"evaluation data: {_DATA}", show_default=False)
]
MetricName = Annotated[str, typer.Option("--metric", help="top1, cosine, mse, or module:function")]
Device = Annotated[str, typer.Option(help="a device profile by name, or its TOML file")]
MaxLatency = Annotated[
    float | None,
    typer.Option(help="latency budget in milliseconds; none by default", show_default=False),
]
EncodingsFile = Annotated[
    Path | None,
    typer.Option("--encodings", help="an encodings file (AIMET, QNN or ours) for an ONNX model"),
]
ArithmeticName = Annotated[
    str,
    typer.Option(
        "--arithmetic", help="whose integers: onnxruntime, tflite-reference, mnn, ncnn, ..."
    ),
]
EncodingsVersion = Annotated[
    Literal["0.6.1", "1.0.0", "2.0.0", "2.1.0"], typer.Option(help="format of encodings.json")
]
Target = Annotated[
    str,
    typer.Option(
        help="what the backend can do: a name, its TOML file, or the JSON configuration of AIMET's "
        "quantsim or AMCT"
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(help="number format of the weights; the target's by default", show_default=False),
]
Activations = Annotated[
    str | None,
    typer.Option(
        help="number format of the activations; the target's by default", show_default=False
    ),
]
Scales = Annotated[
    Literal["tensor", "channel"] | None,
    typer.Option(
        help="scales of a weight: one, or one per channel; the target's by default",
        show_default=False,
    ),
]
RoundingName = Annotated[
    str,
    typer.Option("--rounding", help=f"how each weight is rounded: {', '.join(ROUNDINGS)}"),
]
RulesFile = Annotated[
    Path | None,
    typer.Option(
        "--rules", help="a TOML file of [[rule]] tables that come first", show_default=False
    ),
]
Key = Annotated[int, typer.Option(help="seed of everything random")]
BatchSize = Annotated[int, typer.Option(help="samples per batch, at most")]
Out = Annotated[
    Path | None, typer.Option(help="folder for the results; nothing is written without it")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, no progress")]
