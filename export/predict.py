"""Classify with an exported file: numpy and onnxruntime alone; neither torch nor scipy nor onnx is imported."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.machine import available_cores
from .errors import InputError, ModelFileError
from .model_file import OUTPUTS, open_session, read_metadata, read_model


@dataclass(frozen=True)
class Prediction:
    """Predictions for N images.

    Attributes
    ----------
    labels : (N,) int64
    names : tuple of N strings
        The classes' names.
    probabilities : (N, K)
    cosines : (N,)
        Between the feature and the predicted class's row of W, an ETF head's vertex: a geometric confidence, 1 at the
        vertex. The bias does not enter.
    logits : (N, K)
    """

    labels: NDArray[np.int64]
    names: tuple[str, ...]
    probabilities: NDArray[Any]
    cosines: NDArray[Any]
    logits: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def top(self, k: int) -> NDArray[np.int64]:
        """The k most probable classes of each image, best first, (N, k)."""
        return np.argsort(-self.logits, axis=1, kind="stable")[:, :k]


class OnnxClassifier:
    """A classifier from a file that `etf-export` or `export_onnx` wrote.

    Parameters
    ----------
    path : path
        The ONNX file; its sidecar, if there, is `path` with the suffix `.json`.
    threads : int, optional
        Threads of one call. Default: the cores that this process may use, four at most, beyond which single images
        gain nothing.

    Attributes
    ----------
    metadata : dict
        The file's description of itself: preprocessing, head, certificate, versions.
    class_names : tuple of str
    input_shape : tuple of int
        Of one image (or feature vector), without the batch.
    input_dtype : numpy.dtype
    verified : bool
        Whether the sidecar vouched for the file.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, does not match its sidecar, was not written by this package, or was written
        by a later version in a format that this one does not read.

    Warns
    -----
    UserWarning
        If there is no sidecar to verify the file with.

    Examples
    --------
    >>> OnnxClassifier("nowhere.onnx")
    Traceback (most recent call last):
    ...
    nearest_etf.export.errors.ModelFileError: nowhere.onnx is missing: expected a model that etf-export wrote
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        path = Path(path)
        data, verified = read_model(path)
        if not verified:
            warnings.warn(
                f"{path} has no sidecar {path.with_suffix('.json').name}: damage to it would go unnoticed",
                stacklevel=2,
            )
        self._open(data, str(path), verified, threads)

    @classmethod
    def from_bytes(cls, data: bytes, *, threads: int | None = None) -> Self:
        """A classifier from the contents of a file, not verified."""
        classifier = cls.__new__(cls)
        classifier._open(data, "the model", False, threads)
        return classifier

    def _open(self, data: bytes, name: str, verified: bool, threads: int | None) -> None:
        self.verified = verified
        self._session = open_session(data, name, min(4, available_cores()) if threads is None else threads)
        self.metadata: dict[str, Any] = read_metadata(self._session, name)
        try:
            entry = self.metadata["input"]
            self.class_names = tuple(self.metadata["class_names"])
            self.input_shape = tuple(int(size) for size in entry["shape"])
            self.input_dtype = np.dtype(entry["dtype"])
            self._input_name = entry["name"]
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"{name} was not written by etf-export: its metadata lacks the input or the class names"
            ) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        interface = ([entry.name for entry in inputs], [entry.name for entry in outputs], outputs[0].shape[1:])
        if interface != ([self._input_name], list(OUTPUTS), [len(self.class_names)]):
            raise ModelFileError(f"{name} contradicts its own metadata: inputs, outputs and classes are {interface}")

    @property
    def takes_images(self) -> bool:
        """Whether it takes 8-bit pixels, as image files hold them."""
        return self.input_dtype == np.uint8

    @property
    def layout(self) -> str:
        """ "NHWC" or "NCHW"; "NF" for a file that takes features."""
        return str(self.metadata["input"]["layout"])

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of an image, whatever the layout; None for a file that takes features."""
        if self.layout == "NF":
            return None
        first, second, third = self.input_shape
        return (first, second, third) if self.layout == "NHWC" else (second, third, first)

    def predict(self, images: ArrayLike, *, batch_size: int = 64) -> Prediction:
        """Classify a batch of any size, an empty one too.

        Parameters
        ----------
        images : (N, *input_shape), of dtype `input_dtype`
        batch_size : int
            Images per run of the session, which bounds memory.

        Raises
        ------
        InputError
            If the array has another shape or dtype (byte order included), holds NaN or infinity, or makes the
            network's output not finite.
        """
        x = self._valid(images)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: expected at least 1")
        starts = range(0, len(x), batch_size)
        chunks = [self._run(x[start : start + batch_size]) for start in starts] or [self._nothing()]
        logits, probabilities, labels, cosines = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
        if not np.isfinite(logits).all():
            raise InputError("the network's output is not finite: the input is far outside what it was trained on")
        names = tuple(self.class_names[label] for label in labels)
        return Prediction(labels, names, probabilities, cosines, logits)

    def _run(self, x: NDArray[Any]) -> list[NDArray[Any]]:
        return self._session.run(list(OUTPUTS), {self._input_name: np.ascontiguousarray(x)})

    def _nothing(self) -> list[NDArray[Any]]:
        kind = np.dtype(np.float32) if self.takes_images else self.input_dtype
        none = np.empty((0, len(self.class_names)), kind)
        return [none, none, np.empty(0, np.int64), np.empty(0, kind)]

    def _valid(self, images: ArrayLike) -> NDArray[Any]:
        expected = f"(N, {', '.join(map(str, self.input_shape))}) of {self.input_dtype}"
        try:
            x = np.asarray(images)
        except ValueError as error:
            raise InputError(f"{self._input_name} is not one array: expected {expected}") from error
        if x.dtype != self.input_dtype:
            order = "" if x.dtype.isnative else " in foreign byte order"
            raise InputError(f"{self._input_name} has dtype {x.dtype.name}{order}: expected {expected}")
        if x.shape[1:] != self.input_shape or x.ndim == 0:
            hint = "; for a single one write x[None]" if x.shape == self.input_shape else ""
            raise InputError(f"{self._input_name} has shape {x.shape}: expected {expected}{hint}")
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise InputError(f"{self._input_name} holds {int((~np.isfinite(x)).sum())} NaN or infinite values")
        return x
