"""The backbone as an ONNX graph: run in PyTorch, exported by torch for any batch size, and checked for known faults.

torch.export traces a forward in one of two modes, which are tried in this order:

- the default mode runs it, so that `len(images)` and `int(images.shape[0])` become constants of the graph, and the
  batch size with them;
- the strict mode reads its bytecode: it is slower and supports less of Python, but keeps these sizes symbolic.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import onnx.compose
import onnx.inliner
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..common.errors import first_line
from .errors import ExportError
from .freeze import Frozen
from .graph import OPSET, strip

ANY_BATCH = (
    "its forward has to accept any batch size: write x.flatten(1) or x.reshape(x.shape[0], -1), without a fixed "
    "number of images and without a loop over them"
)
DRAWS = {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
DRAWS |= {"RandomUniformLike"}
RANDOM = "the backbone is random in eval mode: in a forward, write dropout as F.dropout(x, p, self.training)"


class _FourDimensions(TorchFunctionMode):
    """Attention in more than four dimensions, which torch's exporter lacks, with the first ones flattened."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) >= 3 and args[0].dim() > 4:
            q, k, v = args[:3]  # (…, heads, L, E)
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            if q.shape[:-3] == k.shape[:-3] == v.shape[:-3] and (mask is None or mask.dim() <= 3):
                flat = (x.flatten(0, x.dim() - 4) for x in (q, k, v))
                return func(*flat, *args[3:], **kwargs).reshape(*q.shape[:-1], v.shape[-1])
        return func(*args, **kwargs)


class _Float32Features(nn.Module):
    """A backbone with its features converted to float32."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images).float()


def backbone_model(frozen: Frozen, image_shape: tuple[int, int, int], opset: int = OPSET) -> onnx.ModelProto:
    """The backbone from `backbone/pixels` (N, C, H, W) to `backbone/features` (N, d), batch norm folded.

    Raises
    ------
    ExportError
        If the backbone

        - fails on images of this shape, or has another number of features than the head;
        - cannot be exported, or only for one batch size;
        - is random in eval mode, mixes the images of a batch, or computes in bfloat16.
    """
    height, width, channels = image_shape
    sample = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    features = _tried(frozen.backbone, sample, frozen.num_features)
    backbone = frozen.backbone if features.dtype == torch.float32 else _Float32Features(frozen.backbone).eval()
    model, reason = _exported(backbone, sample, opset, strict=False)
    if reason == ANY_BATCH:
        model, _ = _exported(backbone, sample, opset, strict=True)
    if model is None:
        raise ExportError(f"the backbone cannot be exported: {reason}")
    found = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if found != opset:
        raise ExportError(
            f"torch exports this backbone in opset {found}: expected {opset}; leave opset out, or update torch"
        )
    if any(node.op_type in DRAWS for node in model.graph.node):
        raise ExportError(RANDOM)
    if _has_bfloat16(model):
        raise ExportError("the forward of the backbone computes in bfloat16: leave autocast and .bfloat16() out of it")
    _name_squeezed_axes(model)
    strip(model)
    return onnx.compose.add_prefix(model, "backbone/")


@torch.no_grad()
def _tried(backbone: nn.Module, sample: Tensor, num_features: int) -> Tensor:
    """The features of two images in PyTorch, after checking that each image's features depend on this image only."""
    mixes = False
    try:
        features = backbone(sample.clone())  # cloned, because a forward may change its input in place
    except Exception as error:
        raise ExportError(
            f"the backbone fails on images of shape (N, C, H, W) = {tuple(sample.shape)}: {first_line(error)}"
        ) from error
    if not isinstance(features, Tensor):
        raise ExportError(
            f"the backbone returns a {type(features).__name__} for 2 images: expected a tensor of features "
            f"(2, {num_features}); wrap it in a module that returns only these"
        )
    if features.shape != (2, num_features) or not features.is_floating_point():
        raise ExportError(
            f"the backbone returns {tuple(features.shape)} {str(features.dtype).removeprefix('torch.')} for 2 images: "
            f"expected features (2, {num_features})"
        )
    tolerance = 1e-2 * features.abs().max()
    if (backbone(sample.clone()) - features).abs().max() > tolerance:
        raise ExportError(RANDOM)
    with contextlib.suppress(Exception):  # after .squeeze(), PyTorch may fail on one image where the file does not
        alone = backbone(sample[:1].clone()).reshape(num_features)
        mixes = bool((alone - features[0]).abs().max() > tolerance)  # False if a feature is not finite
    if mixes:
        raise ExportError(
            "the backbone's features of an image change with the other images of its batch (batch statistics?): "
            "expected features that depend on this image only in eval mode"
        )
    return features


def _exported(backbone: nn.Module, sample: Tensor, opset: int, *, strict: bool) -> tuple[onnx.ModelProto | None, str]:
    """The backbone as a graph for any batch size; or None, and the reason of the failure."""
    shapes = ({0: torch.export.Dim("N")},)
    try:
        with _quiet(), _FourDimensions():
            read = torch.export.export(backbone, (sample,), dynamic_shapes=shapes, strict=True) if strict else None
            program = torch.onnx.export(
                read or backbone,
                (sample,),
                dynamo=True,
                opset_version=opset,
                external_data=False,
                optimize=True,
                verbose=False,
                input_names=["pixels"],
                output_names=["features"],
                dynamic_shapes=shapes,
            )
            assert program is not None
            model = onnx.inliner.inline_local_functions(program.model_proto)
    except Exception as error:
        return None, reason_of(error)
    if not model.graph.output[0].type.tensor_type.shape.dim[0].dim_param:
        return None, ANY_BATCH
    return model, ""


def reason_of(error: BaseException) -> str:
    """Why torch did not export a backbone, from its error and the chain of causes."""
    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    text = " ".join(str(cause) for cause in causes)
    if missing := re.search(r"No ONNX function found for <OpOverload\(op='(?:aten\.)?_*([^']+)'", text):
        return f"its forward calls {missing[1]}, which has no ONNX form"
    if "data-dependent" in text or "DataDependent" in text:
        return "its forward must not branch on tensor values (an if on a sum, .item())"
    if "Constraints violated" in text or "specialized" in text:
        return ANY_BATCH
    root = re.sub(r"\x1b\[[\d;]*m", "", first_line(causes[-1]))
    return f"torch.export cannot trace its forward ({type(causes[-1]).__name__}: {root})"


def _has_bfloat16(model: onnx.ModelProto) -> bool:
    casts = (node for node in model.graph.node if node.op_type == "Cast")
    return any(helper.get_node_attr_value(node, "to") == TensorProto.BFLOAT16 for node in casts)


def _name_squeezed_axes(model: onnx.ModelProto) -> None:
    """Name the axes of every Squeeze that has none: the axes of length 1 for any batch, without the batch axis."""
    squeezes = [node for node in model.graph.node if node.op_type == "Squeeze" and not any(node.input[1:])]
    if not squeezes:
        return
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: value.type.tensor_type.shape for value in (*graph.input, *graph.value_info)}
    for node in squeezes:
        axes = [axis for axis, size in enumerate(shapes[node.input[0]].dim) if size.dim_value == 1]
        name = f"{node.output[0]}_axes"
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(axes)], axes))
        node.input[:] = [node.input[0], name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings, logs and standard error."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
