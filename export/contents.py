"""Validation of the graph and the metadata of an untrusted model file, before onnxruntime opens it.

A model file of this package is one list of standard operators with its weights inside. Everything else is refused:

- loops and branches, functions, training graphs, and operators of other domains;
- weights in other files, sparse weights, and tensors with larger dimensions than their bytes allow.

The protobuf is read field by field, without a copy and without the package onnx, which deployments lack. Field numbers
are those of `onnx.proto`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import ModelFileError

LARGEST_MODEL = 2**31 - 1  # bytes, the limit of protobuf
MOST_NODES = 20_000  # of the graph; a ResNet-152 has 600, a large transformer some thousands
MOST_FIELDS = 1_000_000  # of the protobuf; reading so many takes a second
MOST_VALUES = 2**28  # of one input: a photo of 9,000 × 9,000
DOMAINS = ("", "ai.onnx")
DTYPES = ("uint8", "float16", "float32", "float64")
DIMENSIONS = {"NHWC": 3, "NCHW": 3, "NF": 1}

# Fields of onnx.proto.
GRAPH, TRAINING, FUNCTIONS = 7, 20, 25  # ModelProto
NODE, INITIALIZER, SPARSE_INITIALIZER = 1, 5, 15  # GraphProto
OP_TYPE, ATTRIBUTE, DOMAIN = 4, 5, 7  # NodeProto
TENSOR, SUBGRAPH, TENSORS, SUBGRAPHS, SPARSE, SPARSES = 5, 6, 10, 11, 22, 23  # AttributeProto
DIMS, EXTERNAL_DATA, DATA_LOCATION = 1, 13, 14  # TensorProto


def check_contents(data: bytes, name: str) -> None:
    """Refuse a model that is more than operators and weights, or that is not a protobuf message.

    Raises
    ------
    ModelFileError
        With the reason. `name` is the name of the file in the message.

    Examples
    --------
    >>> check_contents(b"no model", "x.onnx")
    Traceback (most recent call last):
    ...
    nearest_etf.export.errors.ModelFileError: x.onnx is damaged or not an ONNX model (a field of type 6)
    """
    if data[4:8] == b"ORTM":
        raise ModelFileError(f"{name} is in onnxruntime's own format: expected ONNX, as etf-export writes it")
    walk = _Walk()
    nodes = 0
    try:
        for field, value in walk.fields(memoryview(data)):
            if field in (TRAINING, FUNCTIONS):
                what = "functions" if field == FUNCTIONS else "a training graph"
                raise ModelFileError(f"{name} has {what} beside its graph: expected one graph of operators")
            if field == GRAPH:
                nodes = _check_graph(walk, value, name, nodes)
    except _Malformed as error:
        raise ModelFileError(f"{name} is damaged or not an ONNX model ({error})") from error


def check_metadata(metadata: Any, name: str) -> None:
    """Refuse metadata whose entries have other types than those that etf-export writes.

    Raises
    ------
    ModelFileError
        With the entry and its value.

    Examples
    --------
    >>> check_metadata({"input": 3, "class_names": []}, "x.onnx")
    Traceback (most recent call last):
    ...
    nearest_etf.export.errors.ModelFileError: x.onnx was not written by etf-export: its metadata has input = 3
    """

    def refuse(entry: str, found: Any) -> ModelFileError:
        text = repr(found)
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        return ModelFileError(f"{name} was not written by etf-export: its metadata has {entry} = {shown}")

    if not isinstance(metadata, Mapping):
        raise refuse("a whole", metadata)
    entry, names = metadata.get("input"), metadata.get("class_names")
    if entry is None or names is None:
        raise ModelFileError(f"{name} was not written by etf-export: its metadata lacks the input or the class names")
    if not isinstance(entry, Mapping):
        raise refuse("input", entry)
    for key, fits in (
        ("name", isinstance(entry.get("name"), str)),
        ("dtype", entry.get("dtype") in DTYPES if isinstance(entry.get("dtype"), str) else False),
        ("layout", entry.get("layout") in DIMENSIONS if isinstance(entry.get("layout"), str) else False),
        ("shape", _is_shape(entry.get("shape"))),
    ):
        if not fits:
            raise refuse(f"input.{key}", entry.get(key))
    if len(entry["shape"]) != DIMENSIONS[entry["layout"]] or math.prod(entry["shape"]) > MOST_VALUES:
        raise refuse("input.shape", entry["shape"])
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(each, str) for each in names):
        raise refuse("class_names", names)
    transform = metadata.get("transform")
    if transform is not None:
        sizes = [transform.get(key) for key in ("height", "width", "channels")] if isinstance(transform, Mapping) else 0
        shape = entry["shape"] if entry["layout"] == "NHWC" else [*entry["shape"][1:], *entry["shape"][:1]]
        of_images = entry["layout"] != "NF"  # the file of a head records the transform of its backbone's images
        if not _is_shape(sizes) or (of_images and sizes != shape):
            raise ModelFileError(f"{name} records a transform of photos that this version does not support")
    for key in ("ood", "calibration", "versions"):
        if not isinstance(metadata.get(key), Mapping | None):
            raise refuse(key, metadata[key])


def _check_graph(walk: _Walk, graph: memoryview, name: str, nodes: int) -> int:
    """Refuse a graph with more than operators and weights; returns `nodes` plus the number of its nodes."""
    for field, value in walk.fields(graph):
        if field == NODE:
            nodes += 1
            if nodes > MOST_NODES:
                raise ModelFileError(f"{name} has more than {MOST_NODES} nodes: expected a model that etf-export wrote")
            _check_node(walk, value, name)
        elif field == INITIALIZER:
            _check_tensor(walk, value, name)
        elif field == SPARSE_INITIALIZER:
            raise ModelFileError(f"{name} has sparse weights: expected dense ones")
    return nodes


def _check_node(walk: _Walk, node: memoryview, name: str) -> None:
    """Refuse operators of other domains, and operators with a subgraph: If, Loop, Scan."""
    kind = domain = ""
    has_graph = False
    for field, value in walk.fields(node):
        if field == OP_TYPE:
            kind = _text(value)
        elif field == DOMAIN:
            domain = _text(value)
        elif field == ATTRIBUTE:
            for part, inner in walk.fields(value):
                if part in (TENSOR, TENSORS):
                    _check_tensor(walk, inner, name)
                has_graph = has_graph or part in (SUBGRAPH, SUBGRAPHS, SPARSE, SPARSES)
    if domain not in DOMAINS:
        raise ModelFileError(f"{name} needs the operator {kind!r} of {domain!r}: expected only standard ONNX operators")
    if has_graph:
        raise ModelFileError(f"{name} has an operator {kind!r} with a subgraph: expected neither loops nor branches")


def _check_tensor(walk: _Walk, tensor: memoryview, name: str) -> None:
    """Refuse a tensor in another file, or with more entries than its bytes allow."""
    size = 1
    for field, value in walk.fields(tensor):
        if field == DIMS:
            size *= math.prod(walk.numbers(value)) if isinstance(value, memoryview) else (value or 0)
        elif field == EXTERNAL_DATA or (field == DATA_LOCATION and value):
            raise ModelFileError(f"{name} has weights in other files: expected a model in one file")
    if size > 2 * len(tensor):  # the smallest types have half a byte
        raise ModelFileError(f"{name} is damaged: a tensor has {size} entries in {len(tensor)} bytes")


class _Malformed(Exception):
    """Bytes that are not a protobuf message."""


class _Walk:
    """A reader of protobuf messages that raises `_Malformed` after `MOST_FIELDS` fields."""

    def __init__(self) -> None:
        self.left = MOST_FIELDS

    def fields(self, message: memoryview | int | None) -> Iterator[tuple[int, Any]]:
        """The fields of a message: its number and its value, an int, bytes, or None for fixed-size numbers."""
        if not isinstance(message, memoryview):
            raise _Malformed("a number in place of a message")
        i, end = 0, len(message)
        while i < end:
            self.left -= 1
            if self.left < 0:
                raise _Malformed(f"more than {MOST_FIELDS} fields")
            key, i = _varint(message, i)
            kind = key & 7
            value: Any = None
            if kind == 0:
                value, i = _varint(message, i)
            elif kind == 2:
                size, i = _varint(message, i)
                value, i = message[i : i + size], i + size
            elif kind in (1, 5):
                i += 8 if kind == 1 else 4
            else:
                raise _Malformed(f"a field of type {kind}")
            if i > end:
                raise _Malformed("it ends early")
            yield key >> 3, value

    def numbers(self, packed: memoryview) -> Iterator[int]:
        """The integers of a packed field."""
        i = 0
        while i < len(packed):
            self.left -= 1
            if self.left < 0:
                raise _Malformed(f"more than {MOST_FIELDS} fields")
            value, i = _varint(packed, i)
            yield value


def _varint(message: memoryview, i: int) -> tuple[int, int]:
    """A variable-length integer, seven bits in each byte, and the position after it."""
    value = shift = 0
    while True:
        if i >= len(message) or shift > 63:
            raise _Malformed("it ends early" if i >= len(message) else "an integer of more than ten bytes")
        byte = message[i]
        value |= (byte & 0x7F) << shift
        i, shift = i + 1, shift + 7
        if byte < 0x80:
            return value, i


def _text(value: Any) -> str:
    """The start of a string field."""
    if not isinstance(value, memoryview):
        raise _Malformed("a number in place of a text")
    return bytes(value[:40]).decode("utf-8", "replace")


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size > 0 for size in value)
