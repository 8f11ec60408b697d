"""The graph: preprocessing and head built node by node, the backbone exported by torch in between.

The three pieces stand side by side, so that W, b and τ are in the file bit for bit, one piece of code makes both the
whole classifier and the head alone, and lower precision reaches the backbone only. A file's metadata is one JSON object
under the key `nearest_etf`; everything else that an exporter leaves behind (stack traces with absolute paths, names of
source files) is stripped.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx.inliner
import torch
from onnx import TensorProto, helper, numpy_helper

from .. import __version__
from ..common.errors import first_line
from .errors import ExportError
from .freeze import Frozen
from .model_file import METADATA_KEY, OUTPUTS

OPSET, IR_VERSION = 18, 8  # onnxruntime >= 1.16 reads both
HEAD_OPSET, HEAD_IR_VERSION = 13, 7  # for old runtimes
DTYPES: dict[str, type[np.floating[Any]]] = {"fp16": np.float16, "fp32": np.float32, "fp64": np.float64}


@dataclass
class Piece:
    """A run of nodes and the constants they use."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        """A named constant; returns its name."""
        self.constants[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node with one output; returns the output's name."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output


def preprocessing_piece(mean: Sequence[float], std: Sequence[float], layout: str, *, float_input: bool) -> Piece:
    """`images` to `backbone/pixels` (N, C, H, W): (x/255 − mean)/std, as one product and one sum."""
    piece, x = Piece(), "images"
    if layout == "NHWC":
        x = piece.add("Transpose", [x], "images_nchw", perm=[0, 3, 1, 2])
    if float_input:
        piece.add("Identity", [x], "backbone/pixels")
        return piece
    m, s = (np.asarray(v, np.float64).reshape(1, -1, 1, 1) for v in (mean, std))
    x = piece.add("Cast", [x], "images_float", to=TensorProto.FLOAT)
    x = piece.add("Mul", [x, piece.constant("scale", 1 / (255 * s), np.float32)], "images_scaled")
    piece.add("Add", [x, piece.constant("shift", -m / s, np.float32)], "backbone/pixels")
    return piece


def head_piece(frozen: Frozen, features: str, dtype: type[np.floating[Any]], opset: int) -> Piece:
    """Features (N, d) to logits, probabilities (N, K), label and cosine (N,), all in one floating-point type.

    Features are divided by their largest entry before they are squared, so that float16 neither overflows nor
    underflows; then the length is at least 1, and only all-zero features need the `Max`. Without a temperature W
    multiplies the features as they come, and only the cosine needs their length.
    """
    p = Piece()
    W, tau = frozen.weight.astype(np.float64), frozen.temperature
    axis, one = p.constant("axis", [1]), p.constant("one", 1, dtype)
    size = p.add("Abs", [features], "feature_sizes")
    if opset < 18:
        size = p.add("ReduceMax", [size], "feature_max", axes=[1], keepdims=1)
    else:
        size = p.add("ReduceMax", [size, axis], "feature_max", keepdims=1)
    size = p.add("Max", [size, p.constant("tiny", np.finfo(dtype).tiny, dtype)], "feature_scale")  # (N, 1)
    scaled = p.add("Div", [features, size], "features_scaled")
    squares = p.add("Mul", [scaled, scaled], "feature_squares")
    length = p.add("Sqrt", [p.add("ReduceSum", [squares, axis], "feature_sum", keepdims=1)], "feature_length")
    length = p.add("Max", [length, one], "feature_norm")
    if tau is None:
        h = features
    else:
        unit = p.add("Div", [scaled, length], "features_unit")
        h = p.add("Mul", [unit, p.constant("temperature", tau, dtype)], "h")  # (N, d), norm τ

    scores = p.add("MatMul", [h, p.constant("weight", frozen.weight.T, dtype)], "scores")  # (N, K)
    logits = p.add("Add", [scores, p.constant("bias", frozen.bias, dtype)], "logits")
    p.add("Softmax", [logits], "probabilities", axis=1)
    winner = p.add("ArgMax", [logits], "winner", axis=1, keepdims=1)  # (N, 1)
    p.add("Squeeze", [winner, axis], "label")
    norms = np.linalg.norm(W, axis=1) * (1.0 if tau is None else tau)
    inverse = 1 / np.maximum(norms, np.finfo(np.float32).tiny)
    inverse = np.minimum(inverse, np.finfo(dtype).max)  # finite for a row of zeros, whose cosine is then 0
    if tau is None:
        scores = p.add("Div", [p.add("Div", [scores, size], "scores_scaled"), length], "scores_unit")
    cosines = p.add("Mul", [scores, p.constant("inverse_norms", inverse, dtype)], "cosines")
    winning = p.add("GatherElements", [cosines, winner], "winning_cosine", axis=1)
    winning = p.add("Squeeze", [winning, axis], "cosine_unclipped")
    p.add("Clip", [winning, p.constant("minus_one", -1, dtype), one], "cosine")
    return p


def backbone_model(frozen: Frozen, image_shape: tuple[int, int, int]) -> onnx.ModelProto:
    """The backbone from `backbone/pixels` (N, C, H, W) to `backbone/features` (N, d), batch norm folded.

    Raises
    ------
    ExportError
        If the backbone does not run on such images, has another number of features than the head, cannot be
        exported, or only works for one batch size.
    """
    height, width, channels = image_shape
    sample = torch.zeros(2, channels, height, width)
    try:
        with torch.no_grad():
            features = frozen.backbone(sample)
    except Exception as error:
        raise ExportError(
            f"the backbone fails on images of shape (N, C, H, W) = {tuple(sample.shape)}: {first_line(error)}"
        ) from error
    found = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
    if found != (2, frozen.num_features):
        raise ExportError(f"the backbone gives {found} for 2 images: expected features (2, {frozen.num_features})")
    try:
        with _quiet("torch.onnx", "onnxscript", "onnx_ir"):
            program = torch.onnx.export(
                frozen.backbone,
                (sample,),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                optimize=True,
                verbose=False,
                input_names=["pixels"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("N")},),
            )
    except Exception as error:
        raise ExportError(
            f"torch cannot export the backbone ({type(error).__name__}: {first_line(error)}); its forward has to "
            "be free of branches on tensor values, and to accept any batch size"
        ) from error
    assert program is not None
    model = onnx.inliner.inline_local_functions(program.model_proto)
    opset = {entry.domain: entry.version for entry in model.opset_import}
    if opset.get("", 0) != OPSET:
        raise ExportError(f"torch exported the backbone for opset {opset.get('')}: expected {OPSET}")
    if not model.graph.output[0].type.tensor_type.shape.dim[0].dim_param:
        raise ExportError("the backbone exports for one batch size only: its forward has to accept any")
    strip(model)
    return onnx.compose.add_prefix(model, "backbone/")


def classifier_model(
    frozen: Frozen,
    backbone: onnx.ModelProto,
    preprocessing: Piece,
    input_dtype: int,
    input_shape: Sequence[int],
) -> onnx.ModelProto:
    """Preprocessing, backbone and head in one model; `input_shape` leaves out the batch."""
    head = head_piece(frozen, "backbone/features", np.float32, OPSET)
    graph = helper.make_graph(
        [*preprocessing.nodes, *backbone.graph.node, *head.nodes],
        "classifier",
        [helper.make_tensor_value_info("images", input_dtype, ["N", *input_shape])],
        _outputs(frozen.num_classes, np.float32),
        [*preprocessing.constants.values(), *backbone.graph.initializer, *head.constants.values()],
    )
    return helper.make_model(graph, opset_imports=backbone.opset_import, ir_version=IR_VERSION)


def head_model(frozen: Frozen, dtype: type[np.floating[Any]]) -> onnx.ModelProto:
    """The head alone: features (N, d) of any floating-point type, for runtimes as old as opset 13."""
    head = head_piece(frozen, "features", dtype, HEAD_OPSET)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        head.nodes,
        "head",
        [helper.make_tensor_value_info("features", kind, ["N", frozen.num_features])],
        _outputs(frozen.num_classes, dtype),
        list(head.constants.values()),
    )
    opset = [helper.make_opsetid("", HEAD_OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=HEAD_IR_VERSION)


def _outputs(num_classes: int, dtype: type[np.floating[Any]]) -> list[onnx.ValueInfoProto]:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    kinds = [kind, kind, TensorProto.INT64, kind]
    shapes = [["N", num_classes], ["N", num_classes], ["N"], ["N"]]
    return [helper.make_tensor_value_info(*of) for of in zip(OUTPUTS, kinds, shapes, strict=True)]


def seal(model: onnx.ModelProto, metadata: dict[str, Any]) -> bytes:
    """Strip, describe and validate a model; the same model and metadata give the same bytes.

    Raises
    ------
    ExportError
        If ONNX's own checker finds the graph invalid.
    """
    strip(model)
    model.producer_name, model.producer_version = "nearest-etf", __version__
    helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata, sort_keys=True, ensure_ascii=False)})
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise ExportError(f"the exported graph is not valid ONNX: {first_line(error)}") from error
    return model.SerializeToString(deterministic=True)


def strip(model: onnx.ModelProto) -> None:
    """Remove documentation strings, exporters' metadata and intermediate shapes, everywhere."""
    for message in (model, *model.functions):
        message.ClearField("doc_string")
        message.ClearField("metadata_props")
    _strip_graph(model.graph)


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.ClearField("value_info")
    for message in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        message.ClearField("doc_string")
        message.ClearField("metadata_props")
    for node in graph.node:
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for subgraph in (attribute.g, *attribute.graphs):
                if subgraph.node:
                    _strip_graph(subgraph)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """No warnings inside this context, and nothing below an error from the loggers of these names."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
