"""Untrusted model files: everything beyond operators and weights is refused, with an error of ours and in seconds."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nearest_etf.export import OnnxClassifier
from nearest_etf.export.contents import MOST_NODES, check_contents, check_metadata
from nearest_etf.export.errors import ModelFileError

FOLDER = Path(__file__).parents[1] / "fixtures" / "written-by-0.1.0"
HEAD = onnx.ModelProto.FromString((FOLDER / "head.onnx").read_bytes())
METADATA = json.loads(next(entry.value for entry in HEAD.metadata_props if entry.key == "nearest_etf"))
Change = Callable[[onnx.ModelProto], object]


def changed(change: Change) -> bytes:
    model = onnx.ModelProto()
    model.CopyFrom(HEAD)
    change(model)
    return model.SerializeToString()


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "../../../../etc/passwd", "offset": "0", "length": "640"}.items():
        tensor.external_data.add(key=key, value=value)


def external_without_flag(model: onnx.ModelProto) -> None:
    """An external location without the flag `data_location`."""
    model.graph.initializer[0].external_data.add(key="location", value="x")


def gigantic(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].ClearField("dims")
    model.graph.initializer[0].dims.extend([2**20, 2**20])


def constant(model: onnx.ModelProto) -> None:
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[2**40])
    model.graph.node.append(helper.make_node("Constant", [], ["constant"], value=tensor))


def body() -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("c", 9), ("x", 1))]
    results = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("co", 9), ("xo", 1))]
    nodes = [helper.make_node("Identity", ["c"], ["co"]), helper.make_node("Identity", ["x"], ["xo"])]
    return helper.make_graph(nodes, "body", values, results)


def endless(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    model.graph.node.append(helper.make_node("Loop", ["", "true", "features"], ["y"], body=body()))


def branch(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=body(), else_branch=body()))


def many(model: onnx.ModelProto) -> None:
    nodes = [helper.make_node("Neg", ["features" if i == 0 else f"n{i - 1}"], [f"n{i}"]) for i in range(MOST_NODES + 1)]
    model.graph.node.extend(nodes)


REFUSED: dict[str, tuple[Change, str]] = {
    "weights in another folder": (external, "has weights in other files"),
    "weights in another file, without the flag": (external_without_flag, "has weights in other files"),
    "a weight of 2^40 entries": (gigantic, "a tensor has 1099511627776 entries in"),
    "a constant of 2^40 entries": (constant, "a tensor has 1099511627776 entries in"),
    "an endless loop": (endless, "operator 'Loop' with a subgraph"),
    "a branch": (branch, "operator 'If' with a subgraph"),
    "sparse weights": (lambda m: m.graph.sparse_initializer.add(), "sparse weights"),
    "a training graph": (lambda m: m.training_info.add(), "a training graph"),
    "functions": (lambda m: m.functions.add(name="f", domain=""), "has functions"),
    "another domain": (
        lambda m: m.graph.node.append(helper.make_node("PyOp", ["features"], ["y"], domain="ai.onnx.contrib")),
        "needs the operator 'PyOp' of 'ai.onnx.contrib'",
    ),
    "too many nodes": (many, f"more than {MOST_NODES} nodes"),
    "a cycle": (
        lambda m: m.graph.node.extend(helper.make_node("Add", [a, a], [b]) for a, b in (("p", "q"), ("q", "p"))),
        "damaged or not an ONNX model",
    ),
    "an unknown input": (lambda m: m.graph.node[0].input.__setitem__(0, "nowhere"), "damaged or not an ONNX model"),
    "no graph": (lambda m: m.ClearField("graph"), "damaged or not an ONNX model|metadata"),
    "no outputs": (lambda m: m.graph.ClearField("output"), "damaged or not an ONNX model|contradicts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_but_operators_and_weights_is_refused(name: str) -> None:
    change, message = REFUSED[name]
    data, began = changed(change), time.monotonic()
    with pytest.raises(ModelFileError, match=message):
        OnnxClassifier.from_bytes(data, threads=1)
    assert time.monotonic() - began < 5


def test_a_million_nodes_are_refused_before_they_are_read() -> None:
    node = helper.make_node("Neg", ["features"], ["n"]).SerializeToString()
    field = b"\x0a" + bytes([len(node)]) + node
    graph = field * 1_000_000
    size, varint = len(graph), b""
    while size:
        varint, size = varint + bytes([size & 0x7F | (0x80 if size > 0x7F else 0)]), size >> 7
    began = time.monotonic()
    with pytest.raises(ModelFileError, match="more than 20000 nodes"):
        check_contents(b"\x3a" + varint + graph, "x.onnx")
    with pytest.raises(ModelFileError, match="more than 1000000 fields"):
        check_contents(b"\x08\x01" * 1_000_001, "x.onnx")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "data", [b"\x08", b"\x3a\xff", b"\x08" + b"\xff" * 11, b"\x0b", b"\x09\x00", b"\x38\x01", b"\x3a\x02\x08\x01"]
)
def test_other_bytes_than_protobuf_are_refused(data: bytes) -> None:
    with pytest.raises(ModelFileError, match=r"x\.onnx is damaged or not an ONNX model"):
        check_contents(data, "x.onnx")


def test_onnxruntime_s_own_format_is_refused() -> None:
    with pytest.raises(ModelFileError, match="onnxruntime's own format"):
        check_contents(b"\x10\0\0\0ORTM" + bytes(100), "x.ort")


def test_every_part_is_checked_where_protobuf_merges_parts() -> None:
    """Protobuf merges a second graph into the first one, so both are checked."""
    second = onnx.ModelProto()
    second.graph.node.append(helper.make_node("PyOp", ["features"], ["y"], domain="ai.onnx.contrib"))
    with pytest.raises(ModelFileError, match="PyOp"):
        check_contents(HEAD.SerializeToString() + second.SerializeToString(), "x.onnx")


ODD: list[Any] = [None, True, -1, 0, 2.5, 1e308, "", "x", [], {}, [[]], {"a": 1}, [None], [2**40, 1, 1], [-3], [True]]


@pytest.mark.parametrize("entry", ["input", "class_names", "transform", "ood", "calibration", "versions"])
def test_metadata_of_another_type_is_refused(entry: str) -> None:
    check_metadata(METADATA, "x.onnx")
    for odd in ODD:
        if odd is None and entry not in ("input", "class_names"):
            continue
        if isinstance(odd, dict) and entry in ("ood", "calibration", "versions"):
            continue  # their entries are checked where they are used
        with pytest.raises(ModelFileError, match=r"metadata|records a transform"):
            check_metadata({**METADATA, entry: odd}, "x.onnx")


@pytest.mark.parametrize("entry", ["name", "dtype", "layout", "shape"])
def test_an_input_of_another_type_is_refused(entry: str) -> None:
    for odd in (*ODD, [8, 8], [2**30], ["16"], "object", "V8"):
        if (entry, type(odd)) == ("name", str):
            continue
        with pytest.raises(ModelFileError, match=rf"metadata has input\.{entry} = "):
            check_metadata({**METADATA, "input": {**METADATA["input"], entry: odd}}, "x.onnx")


@pytest.mark.parametrize(
    "whole", ["[" * 100_000, "1e999", '{"format": Infinity}', '{"format": 1', "\ud800", "9" * 5000]
)
def test_metadata_that_are_no_object_are_refused(whole: str) -> None:
    def replace(model: onnx.ModelProto) -> None:
        for entry in model.metadata_props:
            if entry.key == "nearest_etf":
                entry.value = whole.encode("utf-8", "replace").decode()

    with pytest.raises(ModelFileError, match="not written by etf-export"):
        OnnxClassifier.from_bytes(changed(replace), threads=1)


@pytest.fixture(scope="module")
def shared() -> tuple[OnnxClassifier, np.ndarray, np.ndarray]:
    """A classifier, 64 images of noise, and its answers."""
    classifier = OnnxClassifier(FOLDER / "model.onnx", threads=1)
    images = np.random.default_rng(0).integers(0, 256, (64, *classifier.input_shape), np.uint8)
    return classifier, images, classifier.predict(images).logits


def test_one_classifier_serves_eight_threads(shared: tuple[OnnxClassifier, np.ndarray, np.ndarray]) -> None:
    classifier, images, expected = shared
    start = threading.Barrier(8)

    def answers(seed: int) -> bool:
        start.wait()
        order = np.random.default_rng(seed).permutation(len(images))
        found = [classifier.predict(images[order], batch_size=7).logits for _ in range(20)]
        return all(np.allclose(logits, expected[order], rtol=1e-5, atol=1e-5) for logits in found)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(answers, range(8)))
    assert np.array_equal(classifier.predict(images).logits, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_gets_the_same_numbers(shared: tuple[OnnxClassifier, np.ndarray, np.ndarray]) -> None:
    classifier, images, expected = shared
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(classifier.predict(images).logits, expected) else 1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert np.array_equal(classifier.predict(images).logits, expected)
