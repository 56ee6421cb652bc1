"""What a long reconstruction has found so far, on disk: interrupted, it goes on from there."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jqnt.errors import DataError
from jqnt.learn.checkpoint import Checkpoints
from jqnt.learn.rounding import soft_of
from jqnt.plan import Theta
from jqnt.quantizers import Affine, SoftRound

__all__ = ["Entry", "Journal", "fingerprint"]

_FIELDS = ("scale", "zero_point", "bits", "logit")


class Entry(NamedTuple):
    """What one piece of the network came to: new quantizers and parameters, and its errors."""

    theta: Theta
    params: dict[str, Any]
    errors: tuple[float, ...]


class Journal:
    """One entry for each piece, in order, saved by Orbax when the piece is done.

    A run that is called again with the same arguments takes finished pieces from here and computes
    on after them, bit by bit as if nothing had happened. Raises DataError if the folder is another
    run's, which `identity` (see `fingerprint`) tells.
    """

    def __init__(self, directory: str | Path, identity: str):
        self._store = Checkpoints(directory, keep=None)
        own = np.frombuffer(bytes.fromhex(identity), np.uint8)
        if 0 not in self._store.steps():
            self._store.save(0, [own])
        elif not np.array_equal(self._store.leaves(0)[0], own):
            raise DataError(
                f"{directory} holds the results of another reconstruction (another network, plan, "
                f"data, method or key); give another folder, or empty it"
            )
        self._done = set(self._store.steps())

    def recall(self, piece: int, theta: Theta) -> Entry | None:
        """The entry of piece number `piece`, if it is there; `theta` as the piece found it."""
        if piece + 1 not in self._done:
            return None
        names, *arrays = self._store.leaves(piece + 1)
        kept = dict(zip(json.loads(names.tobytes()), arrays, strict=True))
        parts: dict[str, dict[str, Any]] = {}
        params: dict[str, Any] = {}
        for name, value in kept.items():
            kind, *path = json.loads(name)
            if kind == "theta":
                parts.setdefault(path[0], {})[path[1]] = jnp.asarray(value)
            elif kind == "params":
                params[path[0]] = value
        found = {name: _decoded(theta[name], leaves) for name, leaves in parts.items()}
        return Entry(found, params, tuple(float(x) for x in kept['["errors"]']))

    def record(self, piece: int, entry: Entry) -> None:
        """Returns when the entry is on disk."""
        kept: dict[str, Any] = {'["errors"]': np.asarray(entry.errors, np.float64)}
        for name, quantizer in entry.theta.items():
            for field in _FIELDS:
                if (value := getattr(quantizer, field, None)) is not None:
                    kept[json.dumps(["theta", name, field])] = value
        for name, value in entry.params.items():
            kept[json.dumps(["params", name])] = value
        names = np.frombuffer(json.dumps(list(kept)).encode(), np.uint8)
        arrays = [np.asarray(jax.device_get(value)) for value in kept.values()]
        self._store.save(piece + 1, [names, *arrays])
        self._done.add(piece + 1)

    def close(self) -> None:
        """Waits for what Orbax runs beside."""
        self._store.close()


def fingerprint(*parts: Any) -> str:
    """SHA-256 over the leaves and the structure of pytrees, dataclasses of plain data by repr."""
    digest = hashlib.sha256()
    for part in parts:
        leaves, structure = jax.tree.flatten(part)
        digest.update(str(structure).encode())
        for leaf in leaves:
            if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            if isinstance(leaf, np.ndarray | jax.Array | np.generic):
                value = np.asarray(leaf)
                digest.update(f"{value.dtype.str}{value.shape}".encode() + value.tobytes())
            else:
                digest.update(repr(leaf).encode())
    return digest.hexdigest()


def _decoded(old: Any, leaves: Mapping[str, Any]) -> Any:
    """The quantizer of the piece's tensor: what it was, with other leaves."""
    if "logit" in leaves and isinstance(old, Affine):
        old = soft_of(old, leaves["logit"])
    elif "logit" not in leaves and isinstance(old, SoftRound):
        old = old.affine
    return replace(old, **leaves)
