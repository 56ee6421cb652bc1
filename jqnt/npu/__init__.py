"""The differentiable cost model of neural processing units."""

from jqnt.npu.devices import Device, device, device_names
from jqnt.npu.fit_device import Measurement, fit_device
from jqnt.npu.pairs import Pair, pair_named, pair_of
from jqnt.npu.tables import Tables, expected_latency, latency, latency_range, tables
from jqnt.npu.workload import Workload, workload

__all__ = [
    "Device",
    "Measurement",
    "Pair",
    "Tables",
    "Workload",
    "device",
    "device_names",
    "expected_latency",
    "fit_device",
    "latency",
    "latency_range",
    "pair_named",
    "pair_of",
    "tables",
    "workload",
]
