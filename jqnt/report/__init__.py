"""The evidence for a quantized model: tables, plots, one self-contained HTML page."""

from jqnt.report.document import Provenance, Report, report
from jqnt.report.progress import progress_bar
from jqnt.report.terminal import (
    layer_table,
    metric_figure,
    profile_table,
    staircase_table,
    table_of,
)

__all__ = [
    "Provenance",
    "Report",
    "layer_table",
    "metric_figure",
    "profile_table",
    "progress_bar",
    "report",
    "staircase_table",
    "table_of",
]
