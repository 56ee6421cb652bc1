"""Run by test_merge.py in a process of its own, with two devices: prints what holds."""

import functools

import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp
import numpy as np
from built import built, node
from jax.sharding import PartitionSpec

from jqnt import observers
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.learn.calibrate import calibrate
from jqnt.learn.mesh import data_mesh, place, spread_batches
from jqnt.placement import plan

MESH = data_mesh()
OBSERVERS = {
    "minmax": observers.minmax(),
    "deviations": observers.deviations(),
    "histogram": observers.percentile(99.0),
}
X = (np.random.default_rng(0).normal(size=(6, 8, 50)) * 3 + 0.5).astype(np.float32)


def alike(a, b) -> bool:
    """Two states or grids, but for the order in which float32 sums are taken."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, rtol=2e-5) for x, y in pairs)


def seen(observer, batches):
    """The state after all of them, one after the other."""
    start = observer.init(batches[0])
    return jax.lax.scan(lambda s, x: (observer.update(s, x), None), start, batches)[0]


def merged(observer):
    """Each device has a state of its own for its half of every batch; merged at the end."""

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=MESH, in_specs=PartitionSpec(None, "data"), out_specs=PartitionSpec(),
        check_vma=False,
    )  # fmt: skip
    def run(batches):
        own = seen(observer, batches)
        both = jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, "data"), own)
        first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in range(2))
        return observer.merge(first, second)

    return run(X)


def main() -> None:
    assert len(jax.devices()) == 2
    rng = np.random.default_rng(1)
    graph, params, _ = import_onnx(
        built(
            [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("GlobalAveragePool", "r", "y")],
            {"x": ["N", 2, 6, 6]}, ["y"], {"w": rng.normal(size=(3, 2, 3, 3))},
        )
    )  # fmt: skip
    batches = [{"x": rng.normal(size=(8, 2, 6, 6)).astype(np.float32)} for _ in range(3)]
    laid, apply = plan(graph), lower(graph)
    for name, observer in OBSERVERS.items():
        if alike(merged(observer), seen(observer, jnp.concatenate([X[:, :4], X[:, 4:]]))):
            print("merge", name)
        given = list(spread_batches(batches, MESH))
        assert len(given[0]["x"].sharding.device_set) == 2
        spread = calibrate(apply, place(params, MESH), laid, given, observer=observer)
        if alike(spread, calibrate(apply, params, laid, batches, observer=observer)):
            print("calibrate", name)


if __name__ == "__main__":
    main()
