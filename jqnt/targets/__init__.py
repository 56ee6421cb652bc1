"""Target descriptions as data: what a back end computes on which grids."""

from jqnt.targets.target import Operator, Target, Tensors, load_target, target_names

__all__ = ["Operator", "Target", "Tensors", "load_target", "target_names"]
