"""`export_onnx`: freeze a classifier, build its ONNX model, check it, and write it.

The file is written atomically, after it has passed its check. Beside it, the sidecar `model.json` contains the same
metadata, the report of the check and the file's SHA-256.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto
from torch import nn

from ..torchport import ClassMeans, Head
from .backbone import backbone_model
from .calibration import Calibration, checked_factor
from .certificate import etf_certificate, require_kind
from .check import Bound, CheckReport, compare
from .errors import CheckError, ExportError
from .freeze import Frozen, freeze
from .graph import (
    DTYPES,
    HEAD_OPSET,
    HEAD_OPSETS,
    OPSET,
    OPSETS,
    classifier_model,
    head_model,
    preprocessing_piece,
    seal,
)
from .model_file import FORMAT, FORMAT_WITH_OOD, writable_target, write_model
from .ood import OodScore
from .predict import OnnxClassifier
from .trial import TrialError, open_apart

Layout = Literal["NHWC", "NCHW"]
Precision = Literal["fp32", "fp16", "int8"]


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str] | None = None,
    layout: Layout = "NHWC",
    precision: Precision = "fp32",
    float_input: bool = False,
    calibration_images: ArrayLike | None = None,
    check_images: ArrayLike | None = None,
    check_labels: ArrayLike | None = None,
    bound: Bound | None = None,
    calibration: Calibration | float | None = None,
    ood: OodScore | None = None,
    opset: int = OPSET,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> CheckReport:
    """Write a classifier with its preprocessing as one ONNX file, after checking it against PyTorch.

    Parameters
    ----------
    model : nn.Module
        With `.backbone`, from images (N, C, H, W) to features (N, d), and `.head`: one of `nearest_etf.torchport`, an
        `nn.Linear`, or a module with `weight` (K, d), `bias` (K,) or None, and `temperature` (None: features are not
        normalised). It is not changed.
    path : path
        Ends in `.onnx`; the sidecar has the suffix `.json`.
    image_shape : (H, W, C)
    mean, std : per channel, on the 0…1 scale
        The backbone sees (x / 255 − mean) / std.
    class_names : sequence of K strings, optional
        Default: "0", "1", …
    layout : {"NHWC", "NCHW"}
        Of the file's input.
    precision : {"fp32", "fp16", "int8"}
        Of the backbone. Outputs and head are always float32.
    float_input : bool
        The file takes normalised float32 images instead of 8-bit pixels.
    calibration_images : (N, H, W, C) uint8, optional
        Real training images; required for int8.
    check_images : (N, H, W, C) uint8, optional
        Real images for the check. Default: 256 images of noise.
    check_labels : (N,), optional
        Their classes, for the accuracy of both sides.
    bound : Bound, optional
        The bound for fp16 or int8, instead of the entry of `check.BOUNDS`. The bound for fp32 is fixed.
    calibration : Calibration or float, optional
        A factor on the file's logits, or a result of `fit_calibration`. Labels and cosines do not change.
    ood : OodScore, optional
        A result of `fit_ood`: the file gets the output `ood_score`, a score for out-of-distribution images.
    opset : int
        Version of ONNX's operators, 18…25. The default supports the oldest runtimes.
    metadata : mapping, optional
        More entries for the file's metadata: plain values, for JSON.
    overwrite : bool
        Replace an existing file.

    Returns
    -------
    CheckReport

    Raises
    ------
    ExportError
        If the model cannot be exported with these options, onnxruntime crashes on the file, or the classifier lacks
        the structure that its kind of head solves for (a simplex ETF, a tight frame, unit rows), as after averaging
        over models.
    ModelFileError
        If the target exists or cannot be written.
    CheckError
        If the exported model exceeds a bound; nothing is written.

    Examples
    --------
    >>> import tempfile
    >>> from torch import nn
    >>> from nearest_etf.torchport import Classifier, FixedETFHead
    >>> model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), FixedETFHead(8, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/model.onnx"
    ...     report = export_onnx(model, path, image_shape=(8, 8, 1), mean=[0.5], std=[0.25])
    ...     labels = OnnxClassifier(path).predict(np.zeros((2, 8, 8, 1), np.uint8)).labels
    >>> report.passed, labels.shape
    (True, (2,))
    """
    path = writable_target(path, overwrite)
    shape = _image_shape(image_shape)
    _one_of("layout", layout, ("NHWC", "NCHW"))
    _one_of("precision", precision, ("fp32", "fp16", "int8"))
    mean, std = _per_channel("mean", mean, shape[2]), _per_channel("std", std, shape[2])
    if min(std) <= 0:
        raise ExportError(f"std is {std}: expected positive numbers")
    if precision == "int8" and float_input:
        raise ExportError("int8 is calibrated on 8-bit images: it cannot go with float_input")
    _in_range("opset", opset, OPSETS)
    quantised_on = _calibration(calibration_images, shape) if precision == "int8" else None
    frozen = replace(freeze(model), factor=checked_factor(calibration), ood=ood)
    stated = {
        **(metadata or {}),
        "kind": "classifier",
        "input": {
            "name": "images",
            "dtype": "float32" if float_input else "uint8",
            "layout": layout,
            "shape": list(shape) if layout == "NHWC" else [shape[2], shape[0], shape[1]],
        },
        "preprocessing": _preprocessing(mean, std, inside=not float_input),
        **_description(frozen, class_names, calibration),
    }
    noise = np.random.default_rng(0).integers(0, 256, (256, *shape), np.uint8)
    images = noise if check_images is None else np.asarray(check_images)

    def finish(graph: onnx.ModelProto, precision: str) -> tuple[bytes, CheckReport]:
        data = seal(graph, {**stated, "precision": precision})
        own = None if precision == "fp32" else bound
        return data, checked(path, data, precision, frozen, images, check_labels, mean=mean, std=std, bound=own)

    preprocessing = preprocessing_piece(mean, std, layout, float_input=float_input)
    backbone = backbone_model(frozen, shape, opset)
    kind = TensorProto.FLOAT if float_input else TensorProto.UINT8
    graph = classifier_model(frozen, backbone, preprocessing, kind, stated["input"]["shape"])
    data, report = finish(graph, "fp32")
    if precision == "fp16":
        from .quantize import KEPT, to_float16

        for kept in KEPT:
            lower = to_float16(backbone, kept)
            half = classifier_model(frozen, lower, preprocessing, kind, stated["input"]["shape"])
            stated["kept_in_fp32"] = kept or None
            try:
                data, report = finish(half, precision)
                if kept:
                    report = replace(report, note=f"{kept} stays in float32, because onnxruntime fails otherwise")
                break
            except TrialError:
                if kept == KEPT[-1]:
                    raise
    elif quantised_on is not None:
        from .quantize import to_int8

        pixels = quantised_on if layout == "NHWC" else quantised_on.transpose(0, 3, 1, 2)
        data, report = finish(to_int8(graph, pixels), precision)
    write_model(path, data, {**stated, "precision": precision}, report.to_dict())
    return report


def export_head_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    check_images: ArrayLike,
    check_labels: ArrayLike | None = None,
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str] | None = None,
    precision: Literal["fp16", "fp32", "fp64"] = "fp32",
    calibration: Calibration | float | None = None,
    ood: OodScore | None = None,
    opset: int = HEAD_OPSET,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> CheckReport:
    """Write only the head: features (N, d) of one floating-point type to logits and the other outputs.

    It is checked on the backbone's features of `check_images`.

    Parameters
    ----------
    check_images : (N, H, W, C) uint8
        Real images for the check.
    precision : {"fp32", "fp16", "fp64"}
        Of the file's input and its outputs.
    opset : int
        Version of ONNX's operators, 13…25. The default supports the oldest runtimes.
    others
        As in `export_onnx`.

    Returns
    -------
    CheckReport

    Raises
    ------
    ExportError, ModelFileError, CheckError
        As for `export_onnx`.

    Examples
    --------
    >>> import tempfile
    >>> from nearest_etf.torchport import Classifier, FixedETFHead
    >>> model = Classifier(nn.Flatten(), FixedETFHead(12, 4))
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 3), np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = export_head_onnx(model, f"{folder}/head.onnx", check_images=images, mean=[0.5] * 3, std=[0.5] * 3)
    ...     OnnxClassifier(f"{folder}/head.onnx").input_shape
    (12,)
    """
    path = writable_target(path, overwrite)
    _one_of("precision", precision, tuple(DTYPES))
    _in_range("opset", opset, HEAD_OPSETS)
    frozen = replace(freeze(model), factor=checked_factor(calibration), ood=ood)
    dtype = DTYPES[precision]
    stated = {
        **(metadata or {}),
        "kind": "head",
        "precision": precision,
        "input": {
            "name": "features",
            "dtype": np.dtype(dtype).name,
            "layout": "NF",
            "shape": [frozen.num_features],
        },
        "preprocessing": _preprocessing(mean, std, inside=False),
        **_description(frozen, class_names, calibration),
    }
    data = seal(head_model(frozen, dtype, opset), stated)
    report = checked(path, data, precision, frozen, check_images, check_labels, mean=mean, std=std, bound=None)
    write_model(path, data, stated, report.to_dict())
    return report


def checked(
    path: Path,
    data: bytes,
    precision: str,
    frozen: Frozen,
    images: ArrayLike,
    labels: ArrayLike | None,
    **how: Any,
) -> CheckReport:
    """The report on a model that is not yet written.

    Raises
    ------
    TrialError
        If onnxruntime cannot open or run the model, or crashes on it.
    CheckError
        If the model exceeds a bound.
    """
    open_apart(data, precision)
    report = compare(OnnxClassifier.from_bytes(data), frozen, images, labels, size=len(data), **how)
    if not report.passed:
        finer = {"int8": ": export in fp16 or fp32", "fp16": ": export in fp32"}.get(precision, "")
        raise CheckError(f"{path} was not written: in {report.precision}, {' and '.join(report.failures)}{finer}")
    return report


def _description(
    frozen: Frozen, class_names: Sequence[str] | None, calibration: Calibration | float | None
) -> dict[str, Any]:
    names = [str(k) for k in range(frozen.num_classes)] if class_names is None else [str(name) for name in class_names]
    if len(names) != frozen.num_classes:
        raise ExportError(f"class_names has {len(names)} names, but the model has {frozen.num_classes} classes")
    fitted = calibration.to_dict() if isinstance(calibration, Calibration) else {}
    head = frozen.head
    if isinstance(head, Head):
        require_kind(frozen.weight, head.kind, getattr(head, "norms", None), frozen.eps)
    running = getattr(head, "running", None)
    class_means = running.class_means.numpy() if isinstance(running, ClassMeans) else None
    packages = ("nearest-etf", "torch", "onnx", "onnxscript", "onnxruntime")
    return {
        "format": FORMAT if frozen.ood is None else FORMAT_WITH_OOD,
        **({} if frozen.ood is None else {"ood": frozen.ood.describe()}),
        "class_names": names,
        "head": frozen.describe_head(),
        "calibration": frozen.factor and {"factor": frozen.factor, **fitted},
        # rounded, so that a file's bytes do not depend on the rounding errors of LAPACK
        "certificate": {k: round(v, 10) for k, v in etf_certificate(frozen.weight, class_means).items()},
        "versions": {package: version(package) for package in packages},
    }


def _preprocessing(mean: Sequence[float], std: Sequence[float], *, inside: bool) -> dict[str, Any]:
    return {"formula": "(x / 255 - mean) / std", "mean": list(mean), "std": list(std), "inside": inside}


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise ExportError(f"image_shape is {tuple(shape)}: expected (H, W, C)")
    height, width, channels = (int(size) for size in shape)
    return height, width, channels


def _per_channel(name: str, values: Sequence[float], channels: int) -> list[float]:
    found = [float(value) for value in values]
    if len(found) != channels or not np.isfinite(found).all():
        raise ExportError(f"{name} is {found}: expected {channels} finite number(s), one per channel")
    return found


def _calibration(images: ArrayLike | None, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    if images is None:
        raise ExportError("int8 needs real training images to calibrate on: pass calibration_images")
    found = np.asarray(images)
    if found.dtype != np.uint8 or found.shape[1:] != shape or not len(found):
        raise ExportError(
            f"calibration_images are {found.shape} {found.dtype}: expected uint8 of shape (N, *{shape}), N > 0"
        )
    return found


def _in_range(name: str, value: int, known: range) -> None:
    if value not in known:
        raise ExportError(f"{name} is {value!r}: expected {known[0]} to {known[-1]}")


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ExportError(f"{name} is {value!r}: expected one of {', '.join(known)}")
