"""How many scales a tensor has, and which of its values share one."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from jqnt.errors import ConfigError

__all__ = ["PER_TENSOR", "Granularity"]


@dataclass(frozen=True)
class Granularity:
    """One scale, one per index of `axis`, or one per `block` along `axis`; of several axes too.

    The scale's shape is (), the sizes of the axes, or the tensor's with each axis divided by its
    block (rounded up): along axes that are not named, blocks are one long, as ONNX has it.
    """

    axis: int | tuple[int, ...] | None = None
    block: int | tuple[int, ...] | None = None

    def __post_init__(self):
        if self.block is None:
            if isinstance(self.axis, tuple) and not self.axis:
                raise ConfigError("a tuple of axes has at least one")
            return
        if self.axis is None or len(self._axes) != len(self._blocks) or min(self._blocks) < 1:
            raise ConfigError("a block size is positive and needs an axis, each axis its own")

    @property
    def single(self) -> bool:
        """Whether it is one of ONNX's: a tensor, a channel, or blocks along one axis."""
        return not isinstance(self.axis, tuple)

    @property
    def _axes(self) -> tuple[int, ...]:
        if self.axis is None:
            return ()
        return self.axis if isinstance(self.axis, tuple) else (self.axis,)

    @property
    def _blocks(self) -> tuple[int, ...]:
        return self.block if isinstance(self.block, tuple) else (self.block or 0,)

    def block_sizes(self, rank: int) -> dict[int, int] | None:
        """Axis -> block size for a tensor of `rank`; None if the scales are in no blocks."""
        if self.block is None:
            return None
        return {a % rank: b for a, b in zip(self._axes, self._blocks, strict=True)}

    def axes(self, rank: int) -> tuple[int, ...]:
        """The axes counted from the front."""
        return tuple(axis % rank for axis in self._axes)

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scale of a tensor of `shape`."""
        if self.axis is None:
            return ()
        blocks = self.block_sizes(len(shape))
        if blocks is None:
            return tuple(shape[a] for a in self.axes(len(shape)))
        return tuple(-(-n // blocks.get(d, 1)) for d, n in enumerate(shape))

    def groups(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`x` with the values that share a scale along a new last axis: scale_shape + (n,).

        A block that is cut short at the end is filled up with zeros.
        """
        if self.axis is None:
            return x.reshape(-1)
        blocks = self.block_sizes(x.ndim)
        if blocks is None:
            axes = self.axes(x.ndim)
            sizes = self.scale_shape(x.shape)
            return jnp.moveaxis(x, axes, range(len(axes))).reshape(*sizes, -1)
        missing = [-n % blocks.get(d, 1) for d, n in enumerate(x.shape)]
        x = jnp.pad(x, [(0, m) for m in missing])
        for axis in sorted(blocks, reverse=True):
            size = blocks[axis]
            x = x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
            x = jnp.moveaxis(x, axis + 1, -1)
        return x.reshape(*x.shape[: len(missing)], -1)

    def expand(self, scale: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
        """`scale` in a shape that broadcasts against a tensor of `shape`."""
        scale = jnp.asarray(scale)
        if self.axis is None or scale.ndim == 0:
            return scale
        blocks = self.block_sizes(len(shape))
        if blocks is not None:
            for axis, size in blocks.items():
                scale = jnp.repeat(scale, size, axis)
            return scale[tuple(slice(n) for n in shape)]
        axes = self.axes(len(shape))
        order = sorted(range(len(axes)), key=axes.__getitem__)
        sizes = [shape[d] if d in axes else 1 for d in range(len(shape))]
        return scale.transpose(order).reshape(sizes)


PER_TENSOR = Granularity()
