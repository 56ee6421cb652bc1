"""Where the shipped files lie (made by scripts/train_demo_model.py).

A residual CNN with 78,426 numbers on noisy 16x16 digits (scikit-learn's, BSD-3; UCI): 512 images
to calibrate, 899 others to evaluate, arrays "image" and "labels".
"""

from pathlib import Path

__all__ = ["CALIB", "EVAL", "MODEL"]

MODEL = Path(__file__).with_name("digits_resnet.onnx")
CALIB = Path(__file__).with_name("digits_calib.npz")
EVAL = Path(__file__).with_name("digits_eval.npz")
