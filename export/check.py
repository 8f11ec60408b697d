"""Compare an exported file with its PyTorch model, on real images and at several batch sizes.

The PyTorch side is the live `head(backbone(x))` with its own normalisation of pixels, not the frozen constants, so that
the check covers every step of the export.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from ..common.errors import first_line
from ..torchport import Head
from .errors import CheckError, ExportError, InputError
from .freeze import Frozen, freeze
from .model_file import OOD_SCORE
from .ood import OodScore
from .predict import OnnxClassifier
from .trial import runtime_reason

BATCH_SIZES = (1, 7, 64)
COMPARED = ("logits", "probabilities", "cosine")
OOD_BOUND = 10  # bound of the scores relative to the largest, in bounds of logits; centring loses digits


@dataclass(frozen=True)
class Bound:
    """The bounds for a precision; None means no bound. Shares of images are rounded up to whole images.

    Attributes
    ----------
    logits : float or None
        Largest absolute error of a logit for logits of size up to 5, the paper's τ; for larger ones it grows in
        proportion. Their size is, times the factor of a calibration,

        - τ, or `τ·‖w‖` for the longest row w of W, if that is longer than one;
        - for a head without normalisation, the largest `‖f‖·‖w‖` of the compared images and the rows of W.
    agreement : float
        Least share of images with the same label.
    accuracy_loss : float or None
        Largest loss of accuracy, in [0, 1].

    Examples
    --------
    >>> Bound(logits=0.05, agreement=0.99)  # for export_onnx(..., precision="fp16", bound=...)
    Bound(logits=0.05, agreement=0.99, accuracy_loss=None)
    """

    logits: float | None
    agreement: float
    accuracy_loss: float | None = None


BOUNDS = {
    "fp64": Bound(logits=1e-5, agreement=1.0),
    "fp32": Bound(logits=1e-5, agreement=1.0),
    "fp16": Bound(logits=2e-2, agreement=0.999),
    "int8": Bound(logits=None, agreement=0.99, accuracy_loss=0.005),
}


@dataclass(frozen=True)
class Deviation:
    """The largest difference of an output from PyTorch's, absolute and relative to the output's largest entry."""

    absolute: float
    relative: float


@dataclass(frozen=True)
class CheckReport:
    """The comparison of an exported model with PyTorch.

    Attributes
    ----------
    precision : str
    images : int
        Number of images at the largest batch size.
    batch_sizes : tuple of int
    size : int
        Bytes of the file.
    outputs : dict of Deviation
        For logits, probabilities, cosine and, if compared, the OOD score, over all batch sizes.
    disagreements : int
        Images with another label than in PyTorch.
    agreement : float
        Share of images with the same label.
    accuracy_torch, accuracy_onnx : float or None
        None without labels.
    failures : tuple of str
        One clause for each exceeded bound.
    note : str
        Where the file differs from the request; empty if nowhere.

    Examples
    --------
    >>> found = CheckReport("fp32", 8, (1, 8), 2048, {"logits": Deviation(1e-6, 1e-7)}, 0, 1.0, None, None, ())
    >>> found.passed, found.outputs["logits"].absolute
    (True, 1e-06)
    """

    precision: str
    images: int
    batch_sizes: tuple[int, ...]
    size: int
    outputs: Mapping[str, Deviation]
    disagreements: int
    agreement: float
    accuracy_torch: float | None
    accuracy_onnx: float | None
    failures: tuple[str, ...]
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether every bound holds."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        lines = [f"{self.precision}, {self.size / 1e6:.2f} MB, {self.images} images at batch {self.batch_sizes}"]
        for name, error in self.outputs.items():
            lines.append(f"  {name:<13} max |Δ| {error.absolute:.1e}, relative {error.relative:.1e}")
        lines.append(f"  same label    {100 * self.agreement:.2f} % ({self.disagreements} differ)")
        if self.accuracy_torch is not None and self.accuracy_onnx is not None:
            lines.append(
                f"  accuracy      PyTorch {100 * self.accuracy_torch:.2f} %, ONNX {100 * self.accuracy_onnx:.2f} %"
            )
        lines += [f"  note: {self.note}"] if self.note else []
        lines += [f"  FAILED: {failure}" for failure in self.failures] or ["  all bounds hold"]
        return "\n".join(lines)


def check_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bound: Bound | None = None,
    ood: OodScore | None = None,
) -> CheckReport:
    """Compare a PyTorch model with its exported file.

    Parameters
    ----------
    model : nn.Module
        With `.backbone` and `.head`.
    path : path
        The ONNX file.
    images : (N, H, W, C) uint8
    labels : (N,), optional
        For the accuracy of both sides.
    mean, std : per channel, on the 0…1 scale, optional
        Normalisation on PyTorch's side. Default: the file's.
    bound : Bound, optional
        Default: the entry of `BOUNDS` for the file's precision.
    ood : OodScore, optional
        The expected score of the file's output `ood_score`. Default: this output is not compared.

    Raises
    ------
    ModelFileError
        If the file cannot be used.
    InputError
        If images or labels have the wrong shape or dtype.
    ExportError
        If the model cannot be frozen, fails, has other classes than the file, or its logits are not finite.
    CheckError
        If the file fails or mixes the images of a batch, its output is not finite, or it lacks `ood_score`.

    Examples
    --------
    >>> import tempfile
    >>> from torch import nn
    >>> from nearest_etf.export import export_onnx
    >>> from nearest_etf.torchport import Classifier, FixedETFHead
    >>> model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), FixedETFHead(8, 3))
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/model.onnx"
    ...     _ = export_onnx(model, path, image_shape=(8, 8, 1), mean=[0.5], std=[0.25])
    ...     report = check_onnx(model, path, images)
    >>> report.passed, report.disagreements
    (True, 0)
    """
    classifier = OnnxClassifier(path)
    stated = classifier.metadata["preprocessing"]
    return compare(
        classifier,
        replace(freeze(model), ood=ood),
        images,
        labels,
        mean=stated["mean"] if mean is None else mean,
        std=stated["std"] if std is None else std,
        bound=bound,
        size=Path(path).stat().st_size,
    )


def compare(
    classifier: OnnxClassifier,
    frozen: Frozen,
    images: ArrayLike,
    labels: ArrayLike | None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    bound: Bound | None,
    size: int,
) -> CheckReport:
    """Compare an open classifier with a frozen model; see `check_onnx`."""
    pixels = np.asarray(images)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or not len(pixels):
        raise InputError(
            f"images have shape {pixels.shape} and dtype {pixels.dtype}: expected (N, H, W, C) uint8, N > 0"
        )
    truth = None if labels is None else np.asarray(labels)
    if truth is not None and truth.shape != pixels.shape[:1]:
        raise InputError(f"labels have shape {truth.shape}: expected one for each of the {len(pixels)} images")
    if len(classifier.class_names) != frozen.num_classes:
        raise ExportError(f"the file has {len(classifier.class_names)} classes, the model {frozen.num_classes}")
    if classifier.image_shape not in (None, pixels.shape[1:]):
        raise InputError(
            f"images are {pixels.shape[1:]}: expected {classifier.image_shape}, height, width and channels"
        )
    precision = classifier.metadata["precision"]
    expected, inputs = _torch_side(frozen, pixels, mean, std, classifier)
    longest = float(np.linalg.norm(frozen.weight, axis=1).max())  # ‖h‖ times this bounds the logits without b
    if frozen.temperature is None:
        size_of_logits = float(expected["length"].max()) * longest
    else:
        size_of_logits = frozen.temperature * max(1.0, longest)
    size_of_logits *= _factor(classifier)

    compared = COMPARED if frozen.ood is None else (*COMPARED, OOD_SCORE)
    worst = {name: Deviation(0.0, 0.0) for name in compared}
    found = np.empty(len(pixels), np.int64)
    differ = np.zeros(len(pixels), bool)  # at any batch size
    for batch_size in sorted(BATCH_SIZES):  # the largest one is last and classifies all images
        some = slice(0, len(pixels) if batch_size == max(BATCH_SIZES) else 64 * batch_size)
        try:
            answer = classifier.predict(inputs[some], batch_size=batch_size)
        except InputError as error:
            reason = runtime_reason(error.__cause__) if error.__cause__ else str(error)
            raise CheckError(
                f"in {precision}, the exported model fails on a batch of {batch_size}, where PyTorch does not: {reason}"
            ) from error
        if answer.logits.shape != expected["logits"][some].shape:
            raise CheckError(f"in {precision}, the exported model mixes the images of a batch of {batch_size}")
        got = {"logits": answer.logits, "probabilities": answer.probabilities, "cosine": answer.cosines}
        if frozen.ood is not None:
            if answer.ood_scores is None:
                raise CheckError(f"the file has no output {OOD_SCORE}")
            got[OOD_SCORE] = answer.ood_scores
        found[some] = answer.labels
        same = answer.labels == expected["label"][some]
        differ[some] |= ~same
        for name in compared:
            rows = same if name in ("cosine", OOD_SCORE) else slice(None)  # these depend on the predicted class
            deviation = _deviation(got[name][rows], expected[name][some][rows])
            worst[name] = max(worst[name], deviation, key=lambda d: d.absolute)

    disagreements = int(differ.sum())
    right = [0 if truth is None else int((labels == truth).sum()) for labels in (expected["label"], found)]
    accuracy = [None if truth is None else count / len(pixels) for count in right]
    largest = worst["logits"].absolute
    bound = bound or BOUNDS[precision]
    failures = _failures(bound, size_of_logits, largest, len(pixels), disagreements, right[0] - right[1])
    if frozen.ood is not None and bound.logits is not None:
        off, allowed = worst[OOD_SCORE].relative, OOD_BOUND * bound.logits
        too_far = f"the OOD score is off by {off:.1e} of the largest; allowed is {allowed:.1e}"
        failures += [too_far] if off > allowed else []
    return CheckReport(
        precision=precision,
        images=len(pixels),
        batch_sizes=BATCH_SIZES,
        size=size,
        outputs=worst,
        disagreements=disagreements,
        agreement=1 - disagreements / len(pixels),
        accuracy_torch=accuracy[0],
        accuracy_onnx=accuracy[1],
        failures=tuple(failures),
    )


def _factor(classifier: OnnxClassifier) -> float:
    """The calibration factor on the file's logits; 1 without a calibration."""
    return float((classifier.metadata.get("calibration") or {}).get("factor", 1.0))


def _failures(bound: Bound, size: float, error: float, images: int, differ: int, lost: int) -> list[str]:
    failures = []
    if bound.logits is not None and not error <= (largest := bound.logits * max(1.0, size / 5)):
        failures.append(f"a logit is off by {error:.2e}; allowed is {largest:.2e}")
    if differ > (most := _whole(1 - bound.agreement, images)):
        failures.append(f"{differ} of {images} images get another label; allowed are {most}")
    if bound.accuracy_loss is not None and lost > (most := _whole(bound.accuracy_loss, images)):
        failures.append(f"accuracy falls by {lost} of {images} images; allowed are {most}")
    return failures


def _whole(share: float, images: int) -> int:
    return math.ceil(share * images - 1e-9)


@torch.no_grad()
def _torch_side(
    frozen: Frozen,
    images: NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    classifier: OnnxClassifier,
) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """PyTorch's outputs, and the same images (or features) as inputs of the classifier."""
    m, s = (torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1) for values in (mean, std))
    if m.shape[1] != images.shape[3]:
        raise InputError(f"images have {images.shape[3]} channels, but mean and std {m.shape[1]}")
    weight, factor = torch.from_numpy(frozen.weight), _factor(classifier)
    chunks: list[dict[str, torch.Tensor]] = []
    for batch in torch.from_numpy(np.ascontiguousarray(images)).split(64):
        x = (batch.permute(0, 3, 1, 2).contiguous().float() / 255 - m) / s  # (B, C, H, W), contiguous as from loaders
        try:
            features = frozen.backbone(x.clone()).reshape(len(x), -1)  # .squeeze() drops a batch of one
            logits = frozen.head(features)
        except Exception as error:
            raise ExportError(f"PyTorch's own model fails on {len(x)} images: {first_line(error)}") from error
        label = logits.argmax(1)
        logits = factor * logits
        pixels = batch if classifier.takes_images else x.permute(0, 2, 3, 1)  # (B, H, W, C)
        chunk = {"logits": logits, "probabilities": logits.softmax(1), "label": label}
        chunk["length"] = features.norm(dim=1)
        if frozen.ood is not None:
            h = frozen.head.normalise(features) if isinstance(frozen.head, Head) else _normalised(features, frozen)
            chunk[OOD_SCORE] = torch.from_numpy(frozen.ood(h.numpy(), frozen.weight, frozen.bias))
        chunk["cosine"] = torch.cosine_similarity(features, weight[label])
        chunk["inputs"] = features if classifier.image_shape is None else pixels
        chunks.append(chunk)
    joined = {name: torch.cat([chunk[name] for chunk in chunks]).numpy() for name in chunks[0]}
    if not np.isfinite(joined["logits"]).all():
        raise ExportError("PyTorch's own logits are not finite: train the model first")
    inputs = joined.pop("inputs").astype(classifier.input_dtype, copy=False)
    return joined, inputs.transpose(0, 3, 1, 2) if classifier.layout == "NCHW" else inputs


def _normalised(features: torch.Tensor, frozen: Frozen) -> torch.Tensor:
    """Features of length τ; unchanged if the head has no temperature."""
    if frozen.temperature is None:
        return features
    return frozen.temperature * torch.nn.functional.normalize(features, dim=1)


def _deviation(found: NDArray[Any], expected: NDArray[Any]) -> Deviation:
    if not found.size:
        return Deviation(0.0, 0.0)
    difference = float(np.abs(found.astype(np.float64) - expected).max())
    largest = float(np.abs(expected).max())
    return Deviation(difference, difference / largest if largest > 0 else difference)
