"""Export of a trained classifier to one checked ONNX file that runs without torch.

    export_onnx(model, "model.onnx", …)           freeze, check against PyTorch, write (torch, onnx, onnxruntime)
    check_onnx(model, "model.onnx", images, …)    repeat the check
    OnnxClassifier("model.onnx")                  classify (numpy and onnxruntime only)

The names are imported on first use, so that a deployment needs only numpy and onnxruntime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import CheckError, ExportError, InputError, ModelFileError

__all__ = [
    "Bound",
    "Calibration",
    "CheckError",
    "CheckReport",
    "ExportError",
    "InputError",
    "ModelFileError",
    "OnnxClassifier",
    "OodScore",
    "Prediction",
    "check_onnx",
    "export_head_onnx",
    "export_onnx",
    "fit_calibration",
    "fit_ood",
]

if TYPE_CHECKING:
    from .calibration import Calibration, fit_calibration
    from .check import Bound, CheckReport, check_onnx
    from .convert import export_head_onnx, export_onnx
    from .ood import OodScore, fit_ood
    from .predict import OnnxClassifier, Prediction
else:
    _MODULES = {
        "Bound": "check",
        "Calibration": "calibration",
        "CheckReport": "check",
        "OnnxClassifier": "predict",
        "OodScore": "ood",
        "Prediction": "predict",
        "check_onnx": "check",
        "export_head_onnx": "convert",
        "export_onnx": "convert",
        "fit_calibration": "calibration",
        "fit_ood": "ood",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        try:
            return getattr(import_module(f".{_MODULES[name]}", __name__), name)
        except ModuleNotFoundError as error:
            if error.name not in ("torch", "onnx", "onnxscript", "onnxruntime"):
                raise
            extra = "deploy" if _MODULES[name] == "predict" else "export"
            message = f"{name} needs {error.name}: pip install 'nearest-etf[{extra}]'"
            raise ModuleNotFoundError(message, name=error.name) from error

    def __dir__():
        return list(__all__)
