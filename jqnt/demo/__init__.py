"""The model and data that ship with jqnt, so that the main job runs with nothing else."""

from jqnt.demo.paths import CALIB, EVAL, MODEL

__all__ = ["CALIB", "EVAL", "MODEL"]
