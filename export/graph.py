"""The ONNX graph: preprocessing and head are built node by node, around the backbone of `backbone.py`.

The three pieces are separate, so that

- the file contains W, b and τ bit for bit;
- a whole classifier and a head without backbone share their code;
- lower precision applies to the backbone only.

The file's metadata is one JSON object under the key `nearest_etf`. All other annotations of exporters, such as stack
traces with absolute paths, are removed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .. import __version__
from ..common.errors import first_line
from ..reference.collapse import CUTOFF
from .errors import ExportError
from .freeze import Frozen
from .model_file import METADATA_KEY, OOD_SCORE, OUTPUTS
from .ood import OodScore

# The first of each is the default: onnxruntime >= 1.16 reads 18, and older runtimes read 13. The last is the newest
# that was tested with torch's exporter, onnx's converter and onnxruntime together.
OPSETS, HEAD_OPSETS = range(18, 26), range(13, 26)
OPSET, HEAD_OPSET = OPSETS[0], HEAD_OPSETS[0]
DTYPES: dict[str, type[np.floating[Any]]] = {"fp16": np.float16, "fp32": np.float32, "fp64": np.float64}


@dataclass
class Piece:
    """A sequence of nodes and their constants."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        """Add a named constant; returns its name."""
        self.constants[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output


def preprocessing_piece(mean: Sequence[float], std: Sequence[float], layout: str, *, float_input: bool) -> Piece:
    """`images` to `backbone/pixels` (N, C, H, W): (x/255 − mean)/std as one product and one sum."""
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
    underflows. Then their length is at least 1, and only all-zero features need the `Max`. Without a temperature, W
    multiplies the unscaled features, and only the cosine needs their length.
    """
    p = Piece()
    W, tau = frozen.weight.astype(np.float64), frozen.temperature
    axis, one = p.constant("axis", [1]), p.constant("one", 1, dtype)
    p.constant("tiny", np.finfo(dtype).tiny, dtype)
    size, scaled, length = _lengths(p, features, "feature", opset)
    if tau is None:
        h = features
    else:
        unit = p.add("Div", [scaled, length], "features_unit")
        h = p.add("Mul", [unit, p.constant("temperature", tau, dtype)], "h")  # (N, d), norm τ

    scores = p.add("MatMul", [h, p.constant("weight", frozen.weight.T, dtype)], "scores")  # (N, K)
    biased = "logits" if frozen.factor is None else "logits_before"
    logits = p.add("Add", [scores, p.constant("bias", frozen.bias, dtype)], biased)
    winner = p.add("ArgMax", [logits], "winner", axis=1, keepdims=1)  # (N, 1); a factor does not change it
    if frozen.factor is not None:
        logits = p.add("Mul", [logits, p.constant("factor", frozen.factor, dtype)], "logits")
    p.add("Softmax", [logits], "probabilities", axis=1)
    p.add("Squeeze", [winner, axis], "label")
    norms = np.linalg.norm(W, axis=1) * (1.0 if tau is None else tau)
    inverse = 1 / np.maximum(norms, np.finfo(np.float32).tiny)
    inverse = np.minimum(inverse, np.finfo(dtype).max)  # finite for a row of zeros, so that its cosine is 0
    if tau is None:
        scores = p.add("Div", [p.add("Div", [scores, size], "scores_scaled"), length], "scores_unit")
    cosines = p.add("Mul", [scores, p.constant("inverse_norms", inverse, dtype)], "cosines")
    winning = p.add("GatherElements", [cosines, winner], "winning_cosine", axis=1)
    winning = p.add("Squeeze", [winning, axis], "cosine_unclipped")
    p.add("Clip", [winning, p.constant("minus_one", -1, dtype), one], "cosine")
    if frozen.ood is not None:
        _add_ood(p, frozen.ood, h, dtype, opset)
    return p


def _lengths(p: Piece, x: str, name: str, opset: int) -> tuple[str, str, str]:
    """The norms of the rows of x (N, d) as two factors: their largest absolute entries, and the norms of x/these.

    Returns the names of the first factor (N, 1), of x divided by it (N, d), and of the second factor (N, 1). A row of
    zeros has the factors tiny and 1.
    """
    size = p.add("Abs", [x], f"{name}_sizes")
    if opset < 18:
        size = p.add("ReduceMax", [size], f"{name}_max", axes=[1], keepdims=1)
    else:
        size = p.add("ReduceMax", [size, "axis"], f"{name}_max", keepdims=1)
    size = p.add("Max", [size, "tiny"], f"{name}_scale")  # (N, 1)
    scaled = p.add("Div", [x, size], f"{name}_scaled")
    squares = p.add("Mul", [scaled, scaled], f"{name}_squares")
    length = p.add("Sqrt", [p.add("ReduceSum", [squares, "axis"], f"{name}_sum", keepdims=1)], f"{name}_length")
    return size, scaled, p.add("Max", [length, "one"], f"{name}_norm")


def _add_ood(p: Piece, score: OodScore, h: str, dtype: type[np.floating[Any]], opset: int) -> None:
    """The classifier's input h (N, d) and `winner` to `ood_score` (N,); see `reference.ood`."""
    known = score.constants
    if score.name == "mahalanobis":
        if dtype == np.float16:
            raise ExportError("OOD score mahalanobis exceeds float16: choose another score, or --precision fp32")
        values, vectors = np.linalg.eigh(known["covariance"])
        kept = values > CUTOFF * values[-1]
        whitening, centre = vectors[:, kept] / np.sqrt(values[kept]), known["class_mean_rows"].mean(axis=0)
        means = (known["class_mean_rows"] - centre) @ whitening  # (K, r)
        z = p.add("Sub", [h, p.constant("ood_centre", centre, dtype)], "ood_centred")
        z = p.add("MatMul", [z, p.constant("ood_whitening", whitening, dtype)], "ood_white")  # (N, r)
        near = p.add("MatMul", [z, p.constant("ood_means", means.T, dtype)], "ood_products")
        near = p.add("Sub", [near, p.constant("ood_halves", np.square(means).sum(axis=1) / 2, dtype)], "ood_near")
        nearest = p.add("ArgMax", [near], "ood_nearest", axis=1, keepdims=0)  # (N,)
        mean = p.add("Gather", [p.constant("ood_mean_rows", means, dtype), nearest], "ood_mean", axis=0)
        apart = p.add("Sub", [z, mean], "ood_apart")  # the products alone would lose digits by cancellation
        squares = p.add("Mul", [apart, apart], "ood_squares")
        p.add("Neg", [p.add("ReduceSum", [squares, "axis"], "ood_distance", keepdims=0)], OOD_SCORE)
        return
    centre = known["centre" if score.name == "neco" else "global_mean"]
    z = p.add("Sub", [h, p.constant("ood_centre", centre, dtype)], "ood_centred")
    _, scaled, length = _lengths(p, z, "ood", opset)
    unit = p.add("Div", [scaled, length], "ood_unit")
    if score.name == "nci":
        proximity = p.add("MatMul", [unit, "weight"], "ood_proximity")  # (N, K)
        winning = p.add("GatherElements", [proximity, "winner"], "ood_winning", axis=1)
        p.add("Squeeze", [winning, "axis"], OOD_SCORE)
        return
    inside = p.add("MatMul", [unit, p.constant("ood_subspace", known["subspace"], dtype)], "ood_inside")  # (N, r)
    squares = p.add("Mul", [inside, inside], "ood_inside_squares")
    share = p.add("Sqrt", [p.add("ReduceSum", [squares, "axis"], "ood_share", keepdims=0)], "ood_unclipped")
    p.add("Min", [share, "one"], OOD_SCORE)


def classifier_model(
    frozen: Frozen,
    backbone: onnx.ModelProto,
    preprocessing: Piece,
    input_dtype: int,
    input_shape: Sequence[int],
) -> onnx.ModelProto:
    """Preprocessing, backbone and head in one model; `input_shape` is without the batch."""
    opset = next(entry.version for entry in backbone.opset_import if not entry.domain)
    head = head_piece(frozen, "backbone/features", np.float32, opset)
    graph = helper.make_graph(
        [*preprocessing.nodes, *backbone.graph.node, *head.nodes],
        "classifier",
        [helper.make_tensor_value_info("images", input_dtype, ["N", *input_shape])],
        _outputs(frozen, np.float32),
        [*preprocessing.constants.values(), *backbone.graph.initializer, *head.constants.values()],
    )
    return _model(graph, backbone.opset_import)


def head_model(frozen: Frozen, dtype: type[np.floating[Any]], opset: int = HEAD_OPSET) -> onnx.ModelProto:
    """A model of the head: features (N, d) of any floating-point type, by default in the oldest supported opset."""
    head = head_piece(frozen, "features", dtype, opset)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        head.nodes,
        "head",
        [helper.make_tensor_value_info("features", kind, ["N", frozen.num_features])],
        _outputs(frozen, dtype),
        list(head.constants.values()),
    )
    return _model(graph, [helper.make_opsetid("", opset)])


def _model(graph: onnx.GraphProto, opsets: Sequence[onnx.OperatorSetIdProto]) -> onnx.ModelProto:
    """The graph in the oldest IR version for these opsets: 7 for opset 13, 8 for 18."""
    version = helper.find_min_ir_version_for(list(opsets), ignore_unknown=True)
    return helper.make_model(graph, opset_imports=opsets, ir_version=version)


def _outputs(frozen: Frozen, dtype: type[np.floating[Any]]) -> list[onnx.ValueInfoProto]:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names, kinds = list(OUTPUTS), [kind, kind, TensorProto.INT64, kind]
    shapes: list[list[str | int]] = [["N", frozen.num_classes], ["N", frozen.num_classes], ["N"], ["N"]]
    if frozen.ood is not None:
        names, kinds, shapes = [*names, OOD_SCORE], [*kinds, kind], [*shapes, ["N"]]
    return [helper.make_tensor_value_info(*of) for of in zip(names, kinds, shapes, strict=True)]


def seal(model: onnx.ModelProto, metadata: dict[str, Any]) -> bytes:
    """Strip a model, add its metadata, and validate it; the same model and metadata give the same bytes.

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
    """Remove documentation strings, exporters' metadata and intermediate shapes from a model and its subgraphs."""
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
