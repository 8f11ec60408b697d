"""Lower precision for the backbone: float16, or int8 convolutions; everything else stays in float32.

float16 reduces the size, and the time on GPUs. onnxruntime's CPU provider computes it in float32 from rounded weights,
so that features beyond float16's range (65504) overflow only on other providers. If onnxruntime cannot open the result,
parts without weights stay in float32, which hardly changes the size.

int8 is static quantisation: activations get unsigned 8 bits with one scale per tensor, calibrated on training images;
weights get signed 8 bits with one scale per output channel. The graph has QuantizeLinear/DequantizeLinear pairs, which
onnxruntime fuses into integer convolutions. Linear layers gain nothing from it and stay in float32.
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

# Parts that stay in float32; the first entry that works is used.
KEPT = ("", "the scaling of attention scores", "everything but convolutions and linear layers")
WITH_WEIGHTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def to_float16(backbone: onnx.ModelProto, kept: str = "") -> onnx.ModelProto:
    """The same backbone in float16, with float32 inputs and outputs, and one entry of `KEPT` in float32.

    onnxruntime 1.32 crashes on float16 attention if queries and keys are scaled separately before their product, as in
    `nn.MultiheadAttention`; the second entry of `KEPT` keeps only these scalings. No other crash was found.
    """
    operations = {node.op_type for node in backbone.graph.node} - WITH_WEIGHTS if kept == KEPT[2] else set()
    converted = convert_float_to_float16(
        onnx.ModelProto.FromString(backbone.SerializeToString()),  # a copy, because the converter changes its argument
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *sorted(operations)],
        node_block_list=_scalings(backbone.graph) if kept == KEPT[1] else [],
    )
    model = ONNXModel(converted)
    model.topological_sort()
    return model.model


def _scalings(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that scale one factor of a product of two activations."""
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    products = (node for node in graph.node if node.op_type == "MatMul" and not constants.intersection(node.input))
    factors = (made_by[name] for product in products for name in product.input if name in made_by)
    return sorted({node.name for node in factors if node.op_type in ("Mul", "Div")})


def to_int8(model: onnx.ModelProto, images: NDArray[np.uint8], batch_size: int = 32) -> onnx.ModelProto:
    """The same classifier with integer convolutions, calibrated on images in the layout of its input.

    Raises
    ------
    ExportError
        If there is no convolution.
    """
    if not any(node.op_type == "Conv" for node in model.graph.node):
        raise ExportError("int8 needs convolutions, but this backbone has none: export it in fp32 or fp16")
    name = model.graph.input[0].name
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        silenced = logging.root.manager.disable
        logging.disable(logging.WARNING)  # onnxruntime recommends a preprocessing that the exporter has already done
        try:
            quantize_static(
                source,
                target,
                _Batches(name, images, batch_size),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Relu"],  # a ReLU is fused into the convolution before it
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(silenced)
        return onnx.load(target)


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """The images, batch by batch, with the interface of onnxruntime's calibration."""

    def __init__(self, name: str, images: NDArray[np.uint8], batch_size: int) -> None:
        starts = range(0, len(images), batch_size)
        self._batches: Iterator[dict[str, NDArray[np.uint8]]] = (
            {name: images[start : start + batch_size]} for start in starts
        )

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return next(self._batches, None)
