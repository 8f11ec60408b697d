"""Lower precision for the backbone alone: float16, or int8 convolutions; the rest stays in float32.

float16 is for size, and for speed on GPUs: onnxruntime's CPU computes it in float32, from rounded weights, so that
features beyond float16's range (65504) would only show where float16 is computed. Where onnxruntime cannot open the
result, parts without weights stay in float32, which costs next to no size.

int8 is static: activations to unsigned 8 bits with one scale per tensor, found on real training images;
weights to signed 8 bits with one scale per output channel; written as QuantizeLinear/DequantizeLinear
pairs, which onnxruntime turns into integer convolutions. Linear layers gain nothing from it and stay in
float32.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from .errors import ExportError

# What stays in float32, the first that works.
KEPT = ("", "the scaling of attention scores", "everything but convolutions and linear layers")
WITH_WEIGHTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def to_float16(backbone: onnx.ModelProto, kept: str = "") -> onnx.ModelProto:
    """The same backbone in float16, with float32 going in and coming out, and one of `KEPT` in float32.

    onnxruntime 1.32 dies of attention in float16 where queries and keys are scaled each by itself before their product,
    as `nn.MultiheadAttention` has it, and of nothing else that was tried; only these scalings are kept by the second.
    """
    operations = {node.op_type for node in backbone.graph.node} - WITH_WEIGHTS if kept == KEPT[2] else set()
    converted = convert_float_to_float16(
        onnx.ModelProto.FromString(backbone.SerializeToString()),  # it changes what it is given
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *sorted(operations)],
        node_block_list=_scalings(backbone.graph) if kept == KEPT[1] else [],
    )
    model = ONNXModel(converted)
    model.topological_sort()
    return model.model


def _scalings(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that scale a factor of a product of two activations."""
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    products = (node for node in graph.node if node.op_type == "MatMul" and not constants.intersection(node.input))
    factors = (made_by[name] for product in products for name in product.input if name in made_by)
    return sorted({node.name for node in factors if node.op_type in ("Mul", "Div")})


def to_int8(model: onnx.ModelProto, images: NDArray[np.uint8], batch_size: int = 32) -> onnx.ModelProto:
    """The same classifier with its convolutions in integers, calibrated on images as the model takes them.

    Raises
    ------
    ExportError
        If there is no convolution.
    """
    if not any(node.op_type == "Conv" for node in model.graph.node):
        raise ExportError("int8 is for convolutions, and this backbone has none: export it in fp32 or fp16")
    name = model.graph.input[0].name
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        silenced = logging.root.manager.disable
        logging.disable(logging.WARNING)  # it advises a preprocessing that the exporter has already done
        try:
            quantize_static(
                source,
                target,
                _Batches(name, images, batch_size),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Relu"],  # a ReLU goes into the convolution before it
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(silenced)
        return onnx.load(target)


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """The images, batch by batch, in the interface of onnxruntime's calibration."""

    def __init__(self, name: str, images: NDArray[np.uint8], batch_size: int) -> None:
        starts = range(0, len(images), batch_size)
        self._batches: Iterator[dict[str, NDArray[np.uint8]]] = (
            {name: images[start : start + batch_size]} for start in starts
        )

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return next(self._batches, None)
