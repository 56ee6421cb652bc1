"""The real models and data that experiments run on: where they lie, and how they are prepared."""

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

DATA = Path(os.environ.get("JQNT_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")

FLOAT_CNNS = (
    "cifar10_resnet20",
    "cifar10_resnet56",
    "imagenet_mobilenetv1_025",
    "imagenet_mobilenetv2_10",
    "ultraface_rfb320",
    "digits_resnet8_bn",
    "digits_resnet8_folded",
    "digits_mbv2_bn",
    "digits_mbv2_folded",
    "digits_mbv2_skew_bn",
    "digits_mbv2_skew_folded",
)

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True, eq=False)
class Images:
    """Inputs [N, C, H, W] for calibration and evaluation, and the labels of the latter."""

    calib: np.ndarray
    eval: np.ndarray
    labels: np.ndarray

    def calibration(self, size: int = 50) -> list[dict[str, np.ndarray]]:
        """The calibration set in batches of `size`, for models whose input is called input."""
        return [{"input": self.calib[i : i + size]} for i in range(0, len(self.calib), size)]

    def evaluation(self, size: int = 100) -> list[dict[str, np.ndarray]]:
        """The evaluation set in batches of `size`, with labels."""
        return [
            {"input": self.eval[i : i + size], "labels": self.labels[i : i + size]}
            for i in range(0, len(self.eval), size)
        ]


def model_path(data: Path, stem: str) -> Path:
    """The ONNX file of a model by its stem."""
    return data / "models" / f"{stem}.onnx"


def cifar10(data: Path) -> Images:
    """1,000 and 4,000 images, ImageNet mean and deviation."""
    with np.load(data / "cifar10_jpeg_5000.npz") as file:
        calib, images, labels = (file[k] for k in ("calib_images", "eval_images", "eval_labels"))
    return Images(_normalized(calib), _normalized(images), labels.astype(np.int64))


def digits(data: Path) -> Images:
    """512 of the 898 training images, and the 899 noisy test images."""
    with np.load(data / "digits_32x32.npz") as file:
        calib, images, labels = file["x_train"][:512], file["x_test"], file["y_test"]
    shape = (-1, 1, 32, 32)
    return Images(
        calib.reshape(shape).astype(np.float32),
        images.reshape(shape).astype(np.float32),
        labels.astype(np.int64),
    )


def imagenet(data: Path, prepare: str) -> Images:
    """200 and 500 photos, centre crop 224: "unit" is x / 127.5 - 1, "standard" as CIFAR-10's."""
    recipes: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
        "unit": lambda x: (x.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2),
        "standard": _normalized,
    }
    found: dict[str, list[np.ndarray]] = {"calib": [], "eval": []}
    labels: dict[str, list[int]] = {"calib": [], "eval": []}
    with zipfile.ZipFile(data / "imagenet_sample_700.zip") as archive:
        names = {Path(n).name: n for n in archive.namelist()}
        lines = archive.read(names["labels.csv"]).decode().splitlines()
        header = lines[0].split(",")
        for line in lines[1:]:
            entry = dict(zip(header, line.split(","), strict=False))
            photo = archive.read(names[Path(entry["file"]).name])
            found[entry["split"]].append(_cropped(photo))
            labels[entry["split"]].append(int(entry["label"]))
    calib, images = (recipes[prepare](np.stack(found[k])) for k in ("calib", "eval"))
    return Images(calib, images, np.array(labels["eval"]))


def _normalized(images: np.ndarray) -> np.ndarray:
    x = (images.astype(np.float32) / 255 - _MEAN) / _STD
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def _cropped(photo: bytes, size: int = 224) -> np.ndarray:
    image = Image.open(io.BytesIO(photo)).convert("RGB")
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))
