"""From a trained classifier to one ONNX file that proves itself and needs no torch.

    export_onnx(model, "model.onnx", …)        freeze, check against PyTorch, write (torch, onnx, onnxruntime)
    check_onnx("model.onnx", model, images)    check again, on demand
    OnnxClassifier("model.onnx")               classify (numpy and onnxruntime alone)

The names are resolved on first use, so that a deployment imports nothing that it does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import CheckError, ExportError, InputError, ModelFileError

if TYPE_CHECKING:
    from .check import Bound, CheckReport, check_onnx
    from .export import export_head_onnx, export_onnx
    from .predict import OnnxClassifier, Prediction

__all__ = [
    "Bound",
    "CheckError",
    "CheckReport",
    "ExportError",
    "InputError",
    "ModelFileError",
    "OnnxClassifier",
    "Prediction",
    "check_onnx",
    "export_head_onnx",
    "export_onnx",
]

_HOME = {
    "Bound": ".check",
    "CheckReport": ".check",
    "OnnxClassifier": ".predict",
    "Prediction": ".predict",
    "check_onnx": ".check",
    "export_head_onnx": ".export",
    "export_onnx": ".export",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
