"""A training, a calibration and a reconstruction on 1 and on all devices; prints JSON.

mesh_case.py [ADDRESS COUNT INDEX]: alone, or as one of COUNT processes. XLA_FLAGS says how many
devices the process has.
"""

import json
import sys
from functools import partial

import jax
import numpy as np
import optax
from built import built, node
from jax.experimental import multihost_utils

import jqnt
from jqnt.learn.mesh import data_mesh, place, spread_batches
from jqnt.learn.reconstruct import reconstruct
from jqnt.learn.rounding import learn_rounding


def network():
    rng = np.random.default_rng(0)
    weights = {
        "stem": rng.normal(size=(16, 2, 3, 3)) * 0.4,
        "deep": rng.normal(size=(16, 1, 3, 3)) * 0.4,
        "head": rng.normal(size=(5, 16)),
        "bias": rng.normal(size=5),
    }
    nodes = [
        node("Conv", "x stem", "a", pads=[1] * 4),
        node("Relu", "a", "ra"),
        node("Conv", "ra deep", "b", group=16, pads=[1] * 4),
        node("Relu", "b", "rb"),
        node("GlobalAveragePool", "rb", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f head bias", "y", transB=1),
    ]
    graph, params, _ = jqnt.import_onnx(built(nodes, {"x": ["N", 2, 6, 6]}, ["y"], weights))
    x = rng.normal(size=(64, 2, 6, 6)).astype(np.float32)
    batches = [{"x": x[:32]}, {"x": x[32:]}]
    plan = jqnt.plan(graph, jqnt.scheme("int8", "uint8"))
    return graph, params, plan, batches


def entropy(outputs, batch):
    """Of the labels 0 to 4 in turn, so that the loss is about ln 5."""
    labels = batch["labels"]
    return optax.softmax_cross_entropy_with_integer_labels(outputs["y"], labels).mean()


def trained(case, mesh, sharded=False):
    """The loss of each step, and the sum of squares of each weight at the end."""
    graph, params, plan, batches = case
    theta = jqnt.calibrate(jqnt.lower(graph), params, plan, batches)
    labelled = [{**batch, "labels": np.arange(32) % 5} for batch in batches]
    # Not Adam, whose first steps have size 1 whatever the gradient: it blows up the last bits.
    optimizer = jqnt.by_kind(optax.sgd(3e-3, momentum=0.9), optax.sgd(3e-5))
    method = jqnt.Method(divergence=entropy, optimizer=optimizer, sharded=sharded)
    losses = []
    after, _ = jqnt.qat(
        graph, params, theta, plan, labelled, params, steps=8, batch_size=16, mesh=mesh,
        method=method, watch=jqnt.Watch(every=1), key=jax.random.key(0),
        progress=lambda step, total, metrics: losses.append(metrics["loss"]),
    )  # fmt: skip
    return losses, {name: float((np.asarray(w) ** 2).sum()) for name, w in after.items()}


def rounded(mesh):
    """The scales of a layer of its own, and its error after some AdaRound."""
    rng = np.random.default_rng(1)
    nodes = [node("Gemm", "x w", "y")]
    model = built(nodes, {"x": ["N", 12]}, ["y"], {"w": rng.normal(size=(12, 6))})
    graph, params, _ = jqnt.import_onnx(model)
    batches = [{"x": rng.normal(size=(32, 12)).astype(np.float32)} for _ in range(2)]
    plan = jqnt.plan(graph, jqnt.scheme("int4", "uint8"))
    split = batches if mesh is None else list(spread_batches(own(batches), mesh))
    theta = jqnt.calibrate(jqnt.lower(graph), params, plan, split)
    method = partial(learn_rounding, steps=20)
    found = reconstruct(graph, params, theta, plan, split, method, key=jax.random.key(0))
    scales = [float(x) for q in theta.values() for x in np.ravel(q.scale)]
    return scales, found.layers[0].after


def own(batches):
    """This process's share of each batch."""
    count, index = jax.process_count(), jax.process_index()
    return [{name: np.split(x, count)[index] for name, x in batch.items()} for batch in batches]


def parts(case, mesh):
    """How many values of each weight a device holds, split over the mesh."""
    _, params, _, _ = case
    placed = place(params, mesh, sharded=True)
    return {name: w.addressable_shards[0].data.size for name, w in placed.items()}


def main():
    if sys.argv[1:]:
        address, count, index = sys.argv[1:]
        jax.distributed.initialize(address, int(count), int(index))
    case, mesh = network(), data_mesh()
    found = {"devices": [jax.local_device_count(), jax.device_count()], "parts": parts(case, mesh)}
    found |= {"sharded": trained(case, mesh, sharded=True), "rounded": rounded(mesh)}
    if jax.process_count() == 1:
        found |= {"split": trained(case, mesh), "alone": trained(case, None)}
        found |= {"rounded alone": rounded(None)}
    print(json.dumps(found), flush=True)
    multihost_utils.sync_global_devices("done")


if __name__ == "__main__":
    main()
