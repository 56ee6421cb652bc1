"""The operator lowerings: importing this package fills the registry."""

from jqnt.ops import activations as activations
from jqnt.ops import attention as attention
from jqnt.ops import blocks as blocks
from jqnt.ops import cast as cast
from jqnt.ops import control_flow as control_flow
from jqnt.ops import data_dependent as data_dependent
from jqnt.ops import elementwise as elementwise
from jqnt.ops import generate as generate
from jqnt.ops import indexing as indexing
from jqnt.ops import integer_products as integer_products
from jqnt.ops import linear as linear
from jqnt.ops import losses as losses
from jqnt.ops import normalization as normalization
from jqnt.ops import pooling as pooling
from jqnt.ops import qoperators as qoperators
from jqnt.ops import quantized as quantized
from jqnt.ops import recurrent as recurrent
from jqnt.ops import reduce as reduce
from jqnt.ops import resize as resize
from jqnt.ops import sampling as sampling
from jqnt.ops import scatter as scatter
from jqnt.ops import selection as selection
from jqnt.ops import shaping as shaping
from jqnt.ops import signal as signal
from jqnt.ops import softmax as softmax
from jqnt.ops import tensor as tensor
