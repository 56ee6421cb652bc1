"""Broken relatives of a real model file: bytes flipped, cut, repeated; fields changed."""

import random
from collections.abc import Iterator

import onnx

NUMBERS = (-(2**63), -(2**31), -7, -1, 0, 1, 2, 3, 7, 1000, 2**31, 2**40, 2**63 - 1)
OPERATORS = (
    "Add", "AveragePool", "BatchNormalization", "Concat", "Constant", "ConstantOfShape", "Conv",
    "ConvTranspose", "DepthToSpace", "Expand", "Flatten", "Gather", "Gemm", "Identity", "LRN",
    "Loop", "MatMul", "MaxPool", "OneHot", "Pad", "QuantizeLinear", "Range", "ReduceMean", "Relu",
    "Reshape", "Resize", "Scan", "Shape", "Slice", "Softmax", "Split", "Tile", "TopK", "Transpose",
    "Unsqueeze", "Upsample", "Where",
)  # fmt: skip


def mutants(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`count` mutants of a serialized model, the same ones for the same seed."""
    rng = random.Random(seed)
    proto = onnx.ModelProto.FromString(content)
    structure = _structure(content, proto)
    for _ in range(count):
        if rng.random() < 0.5:
            yield _bytes(rng, content, structure)
        else:
            copy = onnx.ModelProto()
            copy.CopyFrom(proto)
            for _ in range(rng.choice((1, 1, 1, 2, 4))):
                rng.choice(FIELDS)(rng, copy)
            yield copy.SerializeToString()


def _structure(content: bytes, proto: onnx.ModelProto) -> list[int]:
    """Offsets of the bytes that are no weights."""
    keep = bytearray(b"\1") * len(content)
    for tensor in proto.graph.initializer:
        start = content.find(tensor.raw_data) if len(tensor.raw_data) > 16 else -1
        if start >= 0:
            keep[start : start + len(tensor.raw_data)] = bytes(len(tensor.raw_data))
    return [i for i, kept in enumerate(keep) if kept]


def _bytes(rng: random.Random, content: bytes, structure: list[int]) -> bytes:
    changed = bytearray(content)
    kind = rng.randrange(6)
    at = rng.choice(structure)
    if kind < 3:
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.choice(structure)] = rng.randrange(256)
        if kind == 2:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == 3:
        del changed[rng.randrange(len(changed)) :]
    elif kind == 4:
        del changed[at : at + rng.choice((1, 2, 8, 100))]
    else:
        changed[at:at] = changed[at : at + rng.choice((1, 2, 8, 100))]
    return bytes(changed)


def _node(rng, proto):
    return rng.choice(proto.graph.node) if proto.graph.node else None


def _drop_node(rng, proto):
    if proto.graph.node:
        del proto.graph.node[rng.randrange(len(proto.graph.node))]


def _repeat_node(rng, proto):
    if node := _node(rng, proto):
        proto.graph.node.append(node)


def _rename_operator(rng, proto):
    if node := _node(rng, proto):
        node.op_type = rng.choice(OPERATORS)


def _other_input(rng, proto):
    node, other = _node(rng, proto), _node(rng, proto)
    if node and other and node.input:
        names = [*other.input, *other.output, "", "nothing"]
        node.input[rng.randrange(len(node.input))] = rng.choice(names)


def _more_inputs(rng, proto):
    node, other = _node(rng, proto), _node(rng, proto)
    if node and other:
        node.input.extend(other.input)


def _fewer_inputs(rng, proto):
    if (node := _node(rng, proto)) and node.input:
        del node.input[rng.randrange(len(node.input))]


def _number(rng, proto):
    node = _node(rng, proto)
    if not node or not node.attribute:
        return
    attribute = rng.choice(node.attribute)
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
    elif attribute.floats:
        attribute.floats[0] = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))
    else:
        attribute.i = rng.choice(NUMBERS)
        attribute.f = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))


def _length(rng, proto):
    node = _node(rng, proto)
    if node and node.attribute and (values := rng.choice(node.attribute).ints):
        if rng.random() < 0.5:
            del values[0]
        else:
            values.append(rng.choice(NUMBERS))


def _drop_attribute(rng, proto):
    if (node := _node(rng, proto)) and node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]


def _attribute_kind(rng, proto):
    if (node := _node(rng, proto)) and node.attribute:
        rng.choice(node.attribute).type = rng.randrange(15)


def _tensors(proto):
    found = list(proto.graph.initializer)
    for node in proto.graph.node:
        found += [a.t for a in node.attribute if a.HasField("t")]
    return found


def _tensor_dims(rng, proto):
    tensors = _tensors(proto)
    if tensors and (dims := rng.choice(tensors).dims):
        dims[rng.randrange(len(dims))] = rng.choice(NUMBERS)


def _tensor_shape(rng, proto):
    """Another shape for as many values."""
    if (tensors := _tensors(proto)) and len(dims := rng.choice(tensors).dims) > 1:
        dims[0], dims[1] = dims[1], dims[0]


def _tensor_type(rng, proto):
    if tensors := _tensors(proto):
        rng.choice(tensors).data_type = rng.randrange(30)


def _small_integers(rng, proto):
    """The values of a shape, an axis, a pad."""
    integers = [t for t in _tensors(proto) if t.data_type == 7 and 0 < len(t.raw_data) <= 64]
    if integers:
        tensor = rng.choice(integers)
        at = 8 * rng.randrange(len(tensor.raw_data) // 8)
        value = rng.choice(NUMBERS).to_bytes(8, "little", signed=True)
        tensor.raw_data = tensor.raw_data[:at] + value + tensor.raw_data[at + 8 :]


def _drop_tensor(rng, proto):
    if proto.graph.initializer:
        del proto.graph.initializer[rng.randrange(len(proto.graph.initializer))]


def _input_shape(rng, proto):
    if proto.graph.input:
        dims = rng.choice(proto.graph.input).type.tensor_type.shape.dim
        if dims:
            rng.choice(dims).dim_value = rng.choice(NUMBERS)


def _input_type(rng, proto):
    if proto.graph.input:
        rng.choice(proto.graph.input).type.tensor_type.elem_type = rng.randrange(30)


def _opset(rng, proto):
    if proto.opset_import:
        proto.opset_import[0].version = rng.choice((*range(30), *NUMBERS))


def _domain(rng, proto):
    if node := _node(rng, proto):
        node.domain = rng.choice(("com.microsoft", "ai.onnx", "ai.onnx.ml", "x"))


FIELDS = (
    _drop_node, _repeat_node, _rename_operator, _other_input, _more_inputs, _fewer_inputs, _number,
    _number, _length, _drop_attribute, _attribute_kind, _tensor_dims, _tensor_shape, _tensor_type,
    _small_integers, _small_integers, _drop_tensor, _input_shape, _input_type, _opset, _domain,
)  # fmt: skip
