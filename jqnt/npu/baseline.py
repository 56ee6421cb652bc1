"""The linear latency model to compare with: nonnegative least squares on four counts."""

import numpy as np
from scipy.optimize import nnls

__all__ = ["linear_baseline"]


def linear_baseline(features: np.ndarray, latency_s: np.ndarray, held_out: np.ndarray) -> float:
    """The prediction for `held_out` of nonnegative least squares with relative weights.

    min_c sum_m (features_m . c / latency_m - 1)^2, c >= 0; features are [rows, counts].
    """
    scale = np.maximum(np.abs(features).max(0), 1e-30)
    x = features / scale
    c, _ = nnls(x / latency_s[:, None], np.ones(len(latency_s)))
    return float(held_out / scale @ c)
