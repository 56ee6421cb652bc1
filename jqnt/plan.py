"""What is quantized how (`Plan`), and `bind`: parameters by group -> a quantizer per tensor."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jqnt.errors import ConfigError
from jqnt.formats import Format, Integer
from jqnt.granularity import PER_TENSOR, Granularity
from jqnt.quantizers import Affine, Mixture, affine_of
from jqnt.scales import ScaleFormat
from jqnt.types import Leaf, Quantizer, Symmetry

__all__ = ["Choice", "Options", "Plan", "Spec", "Theta", "bind"]


@dataclass(frozen=True)
class Spec:
    """How one tensor is quantized: number format, granularity, symmetry, and which rule said so.

    `role` is "weight", "activation" or "bias"; `limits` is a range that is fixed, not observed;
    `scale_format` is the grid of the scales themselves. `softmax_axis` is set where Softmax alone
    reads the tensor: what lies so far below the maximum along that axis that its probability
    vanishes (masks add -1e4 or -3e38) does not widen the range.
    """

    format: Format
    granularity: Granularity = PER_TENSOR
    symmetric: Symmetry = False
    role: str = "activation"
    rule: str = "default"
    limits: tuple[float, float] | None = None
    scale_format: ScaleFormat | None = None
    softmax_axis: int | None = None

    def __post_init__(self):
        if isinstance(self.format, Integer) and self.format.bits > 24:
            raise ConfigError(
                f"{self.rule}: {self.format.name} does not fit the float32 of a simulation, whose "
                f"grids have 24 bits at most; wider ones exist in integer arithmetic only"
            )


@dataclass(frozen=True)
class Choice:
    """A group whose tensors' formats are chosen together: option k gives `options[k][i]` to
    `tensors[i]`. Tied activations and (weight, activation) pairs are one choice each."""

    tensors: tuple[str, ...]
    options: tuple[tuple[Spec, ...], ...]


@dataclass(frozen=True)
class Plan:
    """Which tensor carries which spec.

    `tied` maps a tensor to the one whose quantizer it shares (which is in `specs`). `biases`
    maps a bias to the (input, weight) whose scales' product is its own. `choices` are the
    groups whose formats are searched, by name; their tensors are in `specs` too, with the
    format that holds where no search is on.
    """

    specs: Mapping[str, Spec]
    tied: Mapping[str, str] = field(default_factory=dict)
    biases: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    choices: Mapping[str, Choice] = field(default_factory=dict)

    def replace(self, **changes: Any) -> "Plan":
        """A copy with some fields changed."""
        return replace(self, **changes)


@struct.dataclass
class Options:
    """The parameters of one choice: a joint logit per option, and each tensor's branches.

    `branches[tensor][k]` is the quantizer of the tensor's k-th distinct spec, in the order in
    which the options first name it.
    """

    logit: Leaf
    branches: dict[str, tuple[Any, ...]]


Theta = dict[str, Any]
"""What trains, by group: tensor name -> quantizer, choice name -> `Options`."""


def branch_specs(choice: Choice, tensor: str) -> tuple[Spec, ...]:
    """The distinct specs that the options give to `tensor`, in order of first appearance."""
    index = choice.tensors.index(tensor)
    return tuple(dict.fromkeys(option[index] for option in choice.options))


def bind(theta: Theta, plan: Plan, temperature: float | jax.Array = 1.0) -> dict[str, Quantizer]:
    """Expands parameters by group to one quantizer per tensor.

    A choice's logits become probabilities, softmax(logit / temperature); each of its tensors
    gets a `Mixture` of its branches under the marginal of that joint distribution. Tied tensors
    get the quantizer they share. A bias gets the int32 grid of scale sx * sw (symmetric), if
    its input and its weight are on integer grids, else none.
    """
    qparams: dict[str, Quantizer] = {}
    for name, group in theta.items():
        if not isinstance(group, Options):
            qparams[name] = group
            continue
        choice = plan.choices[name]
        joint = jax.nn.softmax(jnp.asarray(group.logit) / temperature)
        for i, tensor in enumerate(choice.tensors):
            specs = branch_specs(choice, tensor)
            belongs = [[float(o[i] == s) for o in choice.options] for s in specs]
            marginal = jnp.asarray(belongs) @ joint
            qparams[tensor] = Mixture(marginal, group.branches[tensor])
    for tensor, leader in plan.tied.items():
        if leader in qparams:
            qparams[tensor] = qparams[leader]
    for bias, (x, weight) in plan.biases.items():
        if (quantizer := _bias_grid(qparams.get(x), qparams.get(weight))) is not None:
            qparams[bias] = quantizer
    return qparams


def _bias_grid(x: Any, weight: Any) -> Affine | None:
    """Affine of scale sx * sw at 32 bits: one scale, or one per output channel."""
    x, weight = affine_of(x), affine_of(weight)
    if x is None or weight is None:
        return None
    if weight.granularity.block is not None or x.granularity != PER_TENSOR:
        return None
    weight = weight.on_grid()
    if weight.scale.ndim > 1:
        return None
    scale = jnp.asarray(x.on_grid().scale) * jnp.asarray(weight.scale)
    granularity = Granularity(axis=0) if scale.ndim else PER_TENSOR
    return Affine(scale, jnp.zeros_like(scale), jnp.float32(32), granularity=granularity)
