"""The names of the leaves that a range is learned by, and which of them stay positive."""

__all__ = ["POSITIVE", "RANGE_FIELDS"]

POSITIVE = frozenset({"alpha", "distance", "gain", "gamma", "scale"})
"""Leaves that a step may not turn over."""

RANGE_FIELDS = POSITIVE | {"center", "high", "log2_threshold", "low", "offset", "softness"}
"""Every leaf of a quantizer that speaks of its range."""
