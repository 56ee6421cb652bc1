"""Data at the door: an .npz file, or a function of the user's, becomes checked batches."""

import hashlib
import importlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jqnt.errors import ConfigError, DataError, nearest
from jqnt.graph.ir import Graph, TensorInfo

__all__ = ["LABELS", "Data", "load_data", "load_function", "split_batches"]

LABELS = "labels"
"""The array beside the inputs that says what the right answers are."""


@dataclass(frozen=True, eq=False)
class Data:
    """Batches of a graph's inputs (and "labels"), in order; iterating begins anew each time.

    `samples` counts them, `digest` is the SHA-256 of names, types, shapes and values.
    """

    source: str
    samples: int
    digest: str
    batches: Callable[[], Iterator[dict[str, np.ndarray]]]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self.batches()


def load_data(source: str | Path, graph: Graph, *, batch_size: int = 64) -> Data:
    """The data in `source`, checked whole against the inputs of `graph`.

    `source` is an .npz file, with arrays named after the inputs (a model of one input takes any
    one array) and optional "labels"; or "module:function", which yields such dicts, one a
    batch. A file is cut into batches of at most `batch_size`, of one size where the number of
    samples has a divisor that is not much smaller; a model of fixed batch gets its own. Floats
    are converted to the type of the input.

    Raises DataError (missing or broken file, wrong name, shape or type, values that are not
    finite, no sample at all) or ConfigError (no such function), each naming the source.
    """
    text = str(source)
    if not Path(text).exists() and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        return _from_function(text, graph)
    arrays = _checked(_read_npz(Path(text)), graph, text)
    count = _count(arrays, text)
    if not count:
        raise DataError(f"{text}: holds no samples; at least one is needed")
    batches = split_batches(arrays, _batch_size(graph, count, batch_size, text))
    return Data(text, count, _digest([arrays]), lambda: iter(batches))


def split_batches(arrays: Mapping[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
    """Views of at most `size` samples each along the leading axis; scalars go with every one."""
    count = max((len(a) for a in arrays.values() if a.ndim), default=1)
    return [
        {name: a[i : i + size] if a.ndim else a for name, a in arrays.items()}
        for i in range(0, count, size)
    ]


def load_function(spec: str, what: str) -> Callable[..., Any]:
    """The function that "module:function" names; ConfigError says what is missing."""
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{what} {spec!r}: no module named {error.name!r}") from None
    except Exception as error:
        raise ConfigError(f"{what} {spec!r}: importing failed: {_line(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        functions = [n for n, v in vars(module).items() if callable(v)]
        hint = nearest(name, functions)
        raise ConfigError(f"{what} {spec!r}: the module has no function {name!r}{hint}")
    return function


def _from_function(spec: str, graph: Graph) -> Data:
    function = load_function(spec, "data")

    def batches() -> Iterator[dict[str, np.ndarray]]:
        try:
            made: Iterable[Any] = function()
            for number, batch in enumerate(made):
                if not isinstance(batch, Mapping):
                    raise DataError(
                        f"{spec}: batch {number} is of type {type(batch).__name__}; expected a "
                        f"dict of arrays by input name"
                    )
                arrays = {str(k): np.asarray(v) for k, v in batch.items()}
                yield _checked(arrays, graph, f"{spec}, batch {number}")
        except DataError:
            raise
        except Exception as error:
            # Whatever the user's function raises: the line says whose it is.
            raise DataError(f"{spec} raised {_line(error)}") from error

    counts = []

    def counted() -> Iterator[dict[str, np.ndarray]]:
        for number, batch in enumerate(batches()):
            counts.append(_count(batch, f"{spec}, batch {number}"))
            yield batch

    digest = _digest(counted())
    if not sum(counts):
        raise DataError(f"{spec}: yields no samples; at least one is needed")
    return Data(spec, sum(counts), digest, batches)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected an .npz file or module:function")
    try:
        with path.open("rb") as file:  # np.load would leave a broken file open
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{path}: a bare array; save it by name with numpy.savez")
            return dict(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not an .npz file, or truncated ({_line(error)})") from None


def _checked(arrays: dict[str, np.ndarray], graph: Graph, source: str) -> dict[str, np.ndarray]:
    """The arrays under the graph's names and in its types."""
    others = [name for name in arrays if name != LABELS]
    if len(graph.inputs) == 1 and len(others) == 1:
        arrays = {(n if n == LABELS else graph.inputs[0]): a for n, a in arrays.items()}
    known = [*graph.inputs, LABELS]
    for name in arrays:
        if name not in known:
            raise DataError(f"{source}: array {name!r} is no input{nearest(name, known)}")
    result: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    for name in graph.inputs:
        if name not in arrays:
            raise DataError(f"{source}: no array for input {name!r}{nearest(name, arrays)}")
        result[name] = _input(name, arrays[name], graph.info.get(name), sizes, source)
    if LABELS in arrays:
        _check_finite(LABELS, arrays[LABELS], source)
        result[LABELS] = arrays[LABELS]
    return result


def _input(
    name: str, array: np.ndarray, info: TensorInfo | None, sizes: dict[str, int], source: str
) -> np.ndarray:
    what = f"{source}: array for input {name!r}"
    if info is not None:
        _check_shape(what, array.shape, info, sizes)
        array = _converted(what, array, np.dtype(info.dtype))
    _check_finite(name, array, source)
    return array


def _check_shape(
    what: str, shape: tuple[int, ...], info: TensorInfo, sizes: dict[str, int]
) -> None:
    """`sizes` remembers what each symbol stood for; the batch axis may be a multiple."""
    if info.shape is None:
        return
    fits = len(shape) == len(info.shape)
    for axis, (size, dim) in enumerate(zip(shape, info.shape, strict=False)):
        expected = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
        whole_batches = axis == 0 and isinstance(dim, int) and dim > 0 and size % dim == 0
        fits = fits and (expected is None or size == expected or whole_batches)
    if not fits:
        declared = ", ".join("?" if d is None else str(d) for d in info.shape)
        raise DataError(f"{what} has shape {list(shape)}; the model takes [{declared}]")


def _converted(what: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Floats to floats; integers to integers that hold them. Anything else is a mistake."""
    if array.dtype == dtype:
        return array
    floats = np.issubdtype(array.dtype, np.floating) and np.issubdtype(dtype, np.floating)
    integers = np.issubdtype(array.dtype, np.integer) and np.issubdtype(dtype, np.integer)
    if integers and array.size:
        limits = np.iinfo(dtype)
        integers = limits.min <= int(array.min()) and int(array.max()) <= limits.max
    if not (floats or integers):
        raise DataError(
            f"{what} is of type {array.dtype}; the model takes {dtype} (preprocess the data as "
            f"in training)"
        )
    with np.errstate(over="ignore"):  # An infinity that this makes is reported with its index.
        return array.astype(dtype)


def _check_finite(name: str, array: np.ndarray, source: str) -> None:
    if np.issubdtype(array.dtype, np.floating) and not (finite := np.isfinite(array)).all():
        index = [int(i) for i in np.argwhere(~finite)[0]]
        raise DataError(
            f"{source}: array {name!r} holds {int((~finite).sum())} values that are NaN or "
            f"infinite, the first at {index}"
        )


def _count(arrays: Mapping[str, np.ndarray], source: str) -> int:
    lengths = {name: len(a) for name, a in arrays.items() if a.ndim}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise DataError(f"{source}: arrays of different numbers of samples: {listed}")
    return next(iter(lengths.values()), 1)


def _batch_size(graph: Graph, count: int, largest: int, source: str) -> int:
    """The model's own batch if fixed; else the largest divisor of `count` in the upper half."""
    fixed = {
        info.shape[0]
        for name in graph.inputs
        if (info := graph.info.get(name)) and info.shape and isinstance(info.shape[0], int)
    }
    if len(fixed) == 1:
        return fixed.pop()
    if largest < 1:
        raise ConfigError(f"{source}: a batch has at least one sample, not {largest}")
    if count <= largest:
        return count
    sizes = range(largest, largest // 2, -1)
    return next((size for size in sizes if count % size == 0), largest)


def _digest(batches: Iterable[Mapping[str, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for name, array in sorted(batch.items()):
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    first = (str(error).strip() or "without a message").splitlines()[0]
    return f"{type(error).__name__}: {first}"
