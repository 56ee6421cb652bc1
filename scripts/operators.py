#!/usr/bin/env python3
"""Runs onnx's backend suite through `jqnt.load` and writes the table of operators.

  scripts/operators.py                     # the whole suite, then jqnt/ops/OPERATORS.md
  scripts/operators.py --match 'softmax'   # some cases, what fails on stdout, no table

Values and types must agree. Cases of strings, sequences, optionals, random numbers, images and
other domains are out of scope. `load` is a loader of the form load(ModelProto) -> fn(*arrays).
"""

import argparse
import collections
import os
import re
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

import jqnt
from jqnt.ops.registry import operators

TABLE = Path(__file__).resolve().parents[1] / "jqnt" / "ops" / "OPERATORS.md"
KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted", "real")

OUT_OF_SCOPE_OPS = re.compile(
    r"String|Sequence|Optional|Random|Bernoulli|Multinomial|ImageDecoder|RegexFullMatch|"
    r"TfIdfVectorizer|Gradient|SequenceMap"
)
OUT_OF_SCOPE_CASES = re.compile(r"training_dropout|sequence_model|bernoulli")


def load(model):
    """`fn(*arrays) -> list of outputs`, by `jqnt.load`."""
    network = jqnt.load(model)

    def run(*arrays):
        results = network(*arrays)
        return list(results) if isinstance(results, tuple) else [results]

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--match", help="a regular expression that case names must match")
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    options = parser.parse_args()
    passed, failed = collections.Counter(), {}
    start = time.time()
    for case in cases(options.kinds, options.match):
        found = outcome(case)
        for op in case_ops(case):
            passed[op] += not found
            if found:
                failed.setdefault(op, []).append((case.name, found))
        passed["all"] += not found
        if found:
            failed.setdefault("all", []).append((case.name, found))
            print(f"{case.kind}/{case.name}: {found}", flush=True)
    total = passed["all"] + len(failed.get("all", []))
    print(f"{passed['all']} of {total} cases pass, {time.time() - start:.0f} s")
    if options.match is None and set(options.kinds) == set(KINDS):
        TABLE.write_text(table(passed, failed, total))
        print(f"wrote {TABLE}")
    return 0


def cases(kinds, match):
    """The cases in scope, with their models read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [case for kind in kinds for case in load_model_tests(kind=kind)]
    for case in sorted(found, key=lambda case: (KINDS.index(case.kind), case.name)):
        if match and not re.search(match, case.name):
            continue
        if case.model is None:
            case = replace(case, model=onnx.load(model_path(case)))
        if in_scope(case):
            yield case


def model_path(case):
    if case.url:
        return Path(onnx.__file__).parent.joinpath(*case.url.split("/")[1:])
    return Path(case.model_dir) / "model.onnx"


def in_scope(case):
    model = case.model
    if OUT_OF_SCOPE_CASES.search(case.name):
        return False
    for op in ops_of(model):
        if "::" in op or (OUT_OF_SCOPE_OPS.search(op) and op != "ReverseSequence"):
            return False
    values = [*model.graph.input, *model.graph.output]
    return all(
        value.type.HasField("tensor_type")
        and value.type.tensor_type.elem_type != TensorProto.STRING
        for value in values
    )


def ops_of(model):
    found = set()

    def visit(nodes):
        for node in nodes:
            known = node.domain in ("", "ai.onnx", *(f.domain for f in model.functions))
            found.add(node.op_type if known else f"{node.domain}::{node.op_type}")
            for attribute in node.attribute:
                visit(attribute.g.node)

    visit(model.graph.node)
    for function in model.functions:
        visit(function.node)
    return found


def case_ops(case):
    """The operators that a case is about: all of its model, but for a function's body."""
    return () if "_expanded" in case.name else ops_of(case.model)


def data(case):
    """[(inputs, expected outputs)]"""
    if case.data_sets is not None:
        return [(list(map(array, ins)), list(map(array, outs))) for ins, outs in case.data_sets]
    if case.url:
        given = {tensor.name for tensor in case.model.graph.initializer}
        inputs = [
            Runner.generate_dummy_data(value, seed=0, name=case.model_name)
            for value in case.model.graph.input
            if value.name not in given
        ]
        stem = str(model_path(case).with_suffix(""))
        count = range(len(case.model.graph.output))
        return [(inputs, [array(onnx.load_tensor(f"{stem}_output_{i}.pb")) for i in count])]
    sets = []
    for folder in sorted(Path(case.model_dir).glob("test_data_set*")):

        def read(what, folder=folder):
            count = len(list(folder.glob(f"{what}_*.pb")))
            return [array(onnx.load_tensor(folder / f"{what}_{i}.pb")) for i in range(count)]

        sets.append((read("input"), read("output")))
    return sets


def array(value):
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def outcome(case):
    """What is wrong, in a line; "" for a case that passes."""
    try:
        run = load(case.model)
        for inputs, expected in data(case):
            for ours, wanted in zip(run(*inputs), expected, strict=True):
                if problem := differs(np.asarray(ours), wanted, case.rtol, case.atol):
                    return problem
    except Exception as error:
        # whatever a case raises is its outcome
        text = (str(error).strip() or "no message").splitlines()[0]
        return f"{type(error).__name__}: {text}"
    return ""


def differs(ours, wanted, rtol, atol):
    if ours.shape != wanted.shape or ours.dtype != wanted.dtype:
        return (
            f"{ours.dtype}{list(ours.shape)} where {wanted.dtype}{list(wanted.shape)} is expected"
        )
    if wanted.dtype.name == "bfloat16":
        rtol = max(rtol, 2**-6)
    if wanted.dtype.kind == "V":
        ours, wanted = ours.astype(np.float32), wanted.astype(np.float32)
    close = np.isclose(ours, wanted, rtol=rtol, atol=atol, equal_nan=True)
    if close.all():
        return ""
    worst = np.abs(ours[~close].astype(np.float64) - wanted[~close].astype(np.float64)).max()
    return f"{np.mean(~close):.1%} of the values differ, by up to {worst:.2g}"


def table(passed, failed, total):
    rows = []
    for (domain, op), opsets in sorted(operators().items()):
        wrong = failed.get(op, []) if not domain else []
        count = passed[op] + len(wrong) if not domain else 0
        status = f"{count - len(wrong)} of {count}" if count else "tests of its own"
        reasons = "; ".join(f"`{name}`: {why}" for name, why in wrong).replace("|", "\\|")
        since = ", ".join(map(str, opsets))
        name = f"{domain}.{op}" if domain else op
        rows.append(f"| {name} | {since} | {status} | {reasons} |")
    every = failed.get("all", [])
    lines = "\n".join(f"- `{name}`: {why}" for name, why in every) or "None."
    return f"""# Operators

Written by `scripts/operators.py`: do not edit. A lowering serves all opsets from the one at which
it begins up to the next; the newest opset known is {onnx.defs.onnx_opset_version()}. The status
counts the cases of onnx {onnx.__version__}'s backend suite that name the operator (values and types
agree, through `jqnt.load` under `jax.jit`); com.microsoft operators are compared with onnxruntime
in `tests/`.

{passed["all"]} of the {total} cases in scope pass. Out of scope: strings, sequences, optionals,
random numbers, images, other domains.

| operator | opsets | cases that pass | remaining failures |
|---|---|---|---|
{chr(10).join(rows)}

## Cases that fail

{lines}
"""


if __name__ == "__main__":
    sys.exit(main())
