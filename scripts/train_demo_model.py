"""Trains the small residual CNN that ships in jqnt/demo and writes it there with its data.

The digits of scikit-learn (8x8, UCI), doubled to 16x16 and hidden in noise: hard enough that four
bits cost points and eight do not. The first half of the images trains and calibrates, the second
half evaluates. Run from anywhere; about half a minute on two cores, the same bytes every time.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import optax
from flax import nnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

NOISE = 1.0
WIDTHS = (16, 32, 64)
OPSET = 17


class Block(nnx.Module):
    """Conv-BN-ReLU-Conv-BN, plus the input (through a 1x1 Conv-BN where the shape changes)."""

    def __init__(self, width_in: int, width: int, stride: int, *, rngs: nnx.Rngs):
        self.conv1 = conv(width_in, width, 3, stride, rngs)
        self.bn1 = nnx.BatchNorm(width, rngs=rngs)
        self.conv2 = conv(width, width, 3, 1, rngs)
        self.bn2 = nnx.BatchNorm(width, rngs=rngs)
        self.resized = stride != 1 or width_in != width
        if self.resized:
            self.conv3 = conv(width_in, width, 1, stride, rngs)
            self.bn3 = nnx.BatchNorm(width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        return nnx.relu(y + (self.bn3(self.conv3(x)) if self.resized else x))


class ResNet(nnx.Module):
    """A stem, one block for each width, the mean over space, and a linear layer."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv = conv(1, WIDTHS[0], 3, 1, rngs)
        self.bn = nnx.BatchNorm(WIDTHS[0], rngs=rngs)
        inputs = (WIDTHS[0], *WIDTHS[:-1])
        self.blocks = nnx.List(
            Block(a, b, 1 if i == 0 else 2, rngs=rngs)
            for i, (a, b) in enumerate(zip(inputs, WIDTHS, strict=True))
        )
        self.fc = nnx.Linear(WIDTHS[-1], 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.bn(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean(axis=(1, 2)))


def conv(width_in: int, width: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    pad = size // 2
    return nnx.Conv(
        width_in,
        width,
        (size, size),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        rngs=rngs,
    )


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images float32[1797, 16, 16] in about [-1, 2], labels int64[1797], in a fixed shuffle."""
    source = load_digits()
    order = np.random.default_rng(0).permutation(len(source.target))
    images = source.images[order].astype(np.float32) / 8 - 0.5
    images = images.repeat(2, axis=1).repeat(2, axis=2)
    return images, source.target[order].astype(np.int64)


def noisy(images: np.ndarray, seed: int) -> np.ndarray:
    """Gaussian noise, on a grid of 1/32 (exact in float16, and it compresses)."""
    noise = np.random.default_rng(seed).normal(0, NOISE, images.shape)
    return (np.rint((images + noise) * 32) / 32).astype(np.float16)


def train(images: np.ndarray, labels: np.ndarray, epochs: int, batch: int = 64) -> ResNet:
    """Adam on cross entropy with fresh noise and shifts by a pixel in each step."""
    model = ResNet(rngs=nnx.Rngs(0))
    steps = epochs * (len(images) // batch)
    schedule = optax.cosine_decay_schedule(4e-3, steps)
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y, key):
        key_noise, key_shift = jax.random.split(key)
        x = x + NOISE * jax.random.normal(key_noise, x.shape)
        shift = jax.random.randint(key_shift, (2,), -1, 2)
        x = jnp.roll(x, shift, axis=(1, 2))

        def loss(model):
            logits = model(x[..., None])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    shuffle = np.random.default_rng(1)
    for number in range(epochs):
        order = shuffle.permutation(len(images))
        values = []
        for start in range(0, len(images) - batch + 1, batch):
            rows = order[start : start + batch]
            key = jax.random.key(number * len(images) + start)
            values.append(step(model, optimizer, images[rows], labels[rows], key))
        if number % 10 == 9:
            print(f"epoch {number + 1}: loss {float(np.mean(jax.device_get(values))):.4f}")
    model.eval()
    return model


def to_onnx(model: ResNet) -> onnx.ModelProto:
    """The model with batch normalization kept and the batch symbolic, NCHW."""
    nodes, weights = [], {}

    def node(op: str, name: str, inputs: list[str], **attrs) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attrs))
        return name

    def add_conv(name: str, layer: nnx.Conv, norm: nnx.BatchNorm, x: str, stride: int) -> str:
        weights[f"{name}.weight"] = np.asarray(layer.kernel[...]).transpose(3, 2, 0, 1)
        size = layer.kernel.shape[0]
        attrs = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [size // 2] * 4}
        x = node("Conv", f"{name}/conv", [x, f"{name}.weight"], **attrs)
        parts = {"scale": norm.scale, "bias": norm.bias, "mean": norm.mean, "var": norm.var}
        for part, value in parts.items():
            weights[f"{name}.bn.{part}"] = np.asarray(value[...])
        inputs = [x, *(f"{name}.bn.{part}" for part in parts)]
        return node("BatchNormalization", f"{name}/bn", inputs, epsilon=norm.epsilon)

    x = node("Relu", "stem/relu", [add_conv("stem", model.conv, model.bn, "image", 1)])
    for i, block in enumerate(model.blocks):
        name, stride = f"block{i + 1}", 1 if i == 0 else 2
        y = add_conv(f"{name}.a", block.conv1, block.bn1, x, stride)
        y = node("Relu", f"{name}.a/relu", [y])
        y = add_conv(f"{name}.b", block.conv2, block.bn2, y, 1)
        if block.resized:
            x = add_conv(f"{name}.shortcut", block.conv3, block.bn3, x, stride)
        x = node("Relu", f"{name}/relu", [node("Add", f"{name}/add", [y, x])])
    x = node("Flatten", "flatten", [node("GlobalAveragePool", "pool", [x])])
    weights["fc.weight"] = np.asarray(model.fc.kernel[...]).T
    weights["fc.bias"] = np.asarray(model.fc.bias[...])
    nodes.append(
        helper.make_node("Gemm", [x, "fc.weight", "fc.bias"], ["logits"], name="fc", transB=1)
    )
    graph = helper.make_graph(
        nodes,
        "digits_resnet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(np.ascontiguousarray(w), name) for name, w in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "jqnt" / "demo")
    parser.add_argument("--epochs", type=int, default=100)
    args = parser.parse_args()
    images, labels = digits()
    half = len(images) // 2
    model = train(images[:half], labels[:half], args.epochs)
    proto = to_onnx(model)
    onnx.save(proto, args.out / "digits_resnet.onnx")
    parts = {"calib": (slice(0, 512), 2), "eval": (slice(half, None), 3)}
    for name, (rows, seed) in parts.items():
        x, y = noisy(images[rows], seed), labels[rows]
        np.savez_compressed(args.out / f"digits_{name}.npz", image=x[:, None], labels=y)
        predicted = model(jnp.asarray(x, jnp.float32)[..., None]).argmax(-1)
        print(f"{name}: {len(y)} images, top-1 {100 * float((predicted == y).mean()):.2f} %")


if __name__ == "__main__":
    main()
