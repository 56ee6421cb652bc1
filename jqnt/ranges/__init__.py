"""Range parametrizations: what trains in place of a scale, one method a file.

Each is a callable pytree with the grid that it ends on as `.affine`, and a function that makes it
from an `Affine`: `make(affine, batched=False)`, where `batched` says that axis 0 holds samples.
"""

from jqnt.ranges.dsq import Dsq, dsq
from jqnt.ranges.ewgs import Ewgs, ewgs
from jqnt.ranges.fields import POSITIVE, RANGE_FIELDS
from jqnt.ranges.lsq import Lsq, LsqPlus, lsq, lsq_plus
from jqnt.ranges.min_max import MinMax, min_max
from jqnt.ranges.pact import Pact, pact
from jqnt.ranges.qil import Qil, qil
from jqnt.ranges.tqt import Tqt, tqt

__all__ = [
    "POSITIVE",
    "RANGE_FIELDS",
    "Dsq",
    "Ewgs",
    "Lsq",
    "LsqPlus",
    "MinMax",
    "Pact",
    "Qil",
    "Tqt",
    "dsq",
    "ewgs",
    "lsq",
    "lsq_plus",
    "min_max",
    "pact",
    "qil",
    "tqt",
]
