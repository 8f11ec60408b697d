"""Classify with an exported file: numpy and onnxruntime alone; neither torch nor scipy nor onnx is imported."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.errors import first_line
from ..common.files import read_bytes
from ..common.machine import available_cores
from ..common.photo import PhotoTransform, evaluation_view, exact_pixels
from .contents import LARGEST_MODEL
from .errors import InputError, ModelFileError
from .model_file import COSINES, CPU, OOD_SCORE, OUTPUTS, open_session, read_metadata, read_model


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
    class_cosines : (N, K)
        Between the feature and every class's row of W.
    ood_scores : (N,), optional
        Of a file with such a score; larger is more like the training images.
    accepted : (N,) bool, optional
        Whether the score reaches the threshold that is in the file.

    Examples
    --------
    >>> logits, probabilities = np.array([[2.0, 0.0, 1.0]]), np.array([[0.665, 0.090, 0.245]])
    >>> cosines = np.array([[0.9, -0.4, 0.1]])
    >>> found = Prediction(np.array([0]), ("cat",), probabilities, cosines[:, 0], logits, cosines)
    >>> len(found), found.top(2).tolist()
    (1, [[0, 2]])
    """

    labels: NDArray[np.int64]
    names: tuple[str, ...]
    probabilities: NDArray[Any]
    cosines: NDArray[Any]
    logits: NDArray[Any]
    class_cosines: NDArray[Any]
    ood_scores: NDArray[Any] | None = None
    accepted: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def top(self, k: int) -> NDArray[np.int64]:
        """The k most probable classes of each image, best first, (N, k)."""
        return np.argsort(-self.logits, axis=1, kind="stable")[:, :k]


class OnnxClassifier:
    """A classifier from a file that `etf-export` or `export_onnx` wrote; it can be pickled, and so sent to workers.

    Parameters
    ----------
    path : path
        The ONNX file; its sidecar, if there, is `path` with the suffix `.json`.
    threads : int, optional
        Threads of one call. Default: the cores that this process may use, four at most, beyond which single images
        gain nothing.
    providers : sequence of str, optional
        What onnxruntime computes on, by its names, the preferred one first, as in `["CUDAExecutionProvider"]`.
        Default: the CPU, which also takes over what another one lacks.

    Attributes
    ----------
    metadata : dict
        The file's description of itself: preprocessing, head, certificate, versions.
    class_names : tuple of str
    input_shape : tuple of int
        Of one image (or feature vector), without the batch.
    input_dtype : numpy.dtype
    transform : PhotoTransform or None
        What its training evaluated photos by; None where the file does not record it.
    ood : dict or None
        Of a file with a score for foreign images: `score` (its name), `threshold`, `share` (of `images` images from
        `split`, which the threshold accepts). None where it has none.
    verified : bool
        Whether the sidecar vouched for the file.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, does not match its sidecar, was not written by this package, or was written
        by a later version in a format that this one does not read.
    InputError
        If there is no such provider on this machine.

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

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        path = Path(path)
        data, self.verified = read_model(path)
        if not self.verified:
            warnings.warn(
                f"{path} has no sidecar {path.with_suffix('.json').name}: damage to it would go unnoticed",
                stacklevel=2,
            )
        self._source: Path | bytes = path.absolute()
        self._open(data, str(path), threads, providers)

    @classmethod
    def from_bytes(cls, data: bytes, *, threads: int | None = None, providers: Sequence[str] | None = None) -> Self:
        """A classifier from the contents of a file, not verified."""
        classifier = cls.__new__(cls)
        classifier.verified, classifier._source = False, data
        classifier._open(data, "the model", threads, providers)
        return classifier

    def __getstate__(self) -> dict[str, Any]:
        kept = ("verified", "_source", "_name", "_sha256", "_threads", "_providers")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        data, expected = self._source, self._sha256
        if isinstance(data, Path):
            data = read_bytes(data, "the model that was pickled", ModelFileError, LARGEST_MODEL)
        self._open(data, self._name, self._threads, self._providers)
        if self._sha256 != expected:
            raise ModelFileError(f"{self._name} is another file than when it was pickled: open it anew")

    def _open(self, data: bytes, name: str, threads: int | None, providers: Sequence[str] | None) -> None:
        self._name, self._sha256, self._threads, self._providers = name, _sha256(data), threads, providers
        threads = min(4, available_cores()) if threads is None else threads
        self._session = open_session(data, name, threads, CPU if providers is None else providers)
        self.metadata: dict[str, Any] = read_metadata(self._session, name)
        entry = self.metadata["input"]
        self.class_names = tuple(self.metadata["class_names"])
        self.input_shape: tuple[int, ...] = tuple(entry["shape"])
        self.input_dtype = np.dtype(entry["dtype"])
        self._input_name = entry["name"]
        transform = self.metadata.get("transform")
        try:
            self.transform = None if transform is None else PhotoTransform.from_dict(transform)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{name} records a transform of photos that this version does not know") from error
        self.ood: dict[str, Any] | None = self.metadata.get("ood")
        if self.ood is not None and not np.isfinite(self.ood.get("threshold", np.nan)):
            raise ModelFileError(f"{name} records no threshold of its score for foreign images")
        self._outputs = [*OUTPUTS, *([] if self.ood is None else [OOD_SCORE])]
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        classes = outputs[0].shape[1:] if outputs else []
        interface = ([entry.name for entry in inputs], [entry.name for entry in outputs], classes)
        if interface != ([self._input_name], [*self._outputs, COSINES], [len(self.class_names)]):
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

    def read_photo(self, path: str | os.PathLike[str], *, exact: bool = False) -> NDArray[np.uint8]:
        """An image file as `predict` takes it, of shape `input_shape`: by `transform`, just as training evaluated it.

        Parameters
        ----------
        path : path
        exact : bool
            Change no pixel, and refuse photos of another size or kind than the model takes. This is done anyway where
            the file records no transform.

        Raises
        ------
        PhotoError
            If the photo cannot be read or is refused.
        InputError
            If the model takes no 8-bit pixels.
        """
        shape = self.image_shape
        if shape is None or not self.takes_images:
            raise InputError(f"the model takes {self.input_dtype} {self._input_name}, not files")
        if exact or self.transform is None:
            pixels = exact_pixels(Path(path), shape)
        else:
            pixels = evaluation_view(Path(path), self.transform)
        return pixels if self.layout == "NHWC" else pixels.transpose(2, 0, 1)

    def predict(self, images: ArrayLike, *, batch_size: int = 64) -> Prediction:
        """Classify a batch of any size, an empty one too.

        Parameters
        ----------
        images : (N, …)
            Each image of `input_shape`; of dtype `input_dtype`.
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
        logits, probabilities, labels, cosines, *ood, all_cosines = map(np.concatenate, zip(*chunks, strict=True))
        if not np.isfinite(logits).all():
            raise InputError("the network's output is not finite: the input is far outside what it was trained on")
        names = tuple(self.class_names[label] for label in labels)
        scores = ood[0] if ood else None
        accepted = None if scores is None or self.ood is None else scores >= self.ood["threshold"]
        return Prediction(labels, names, probabilities, cosines, logits, all_cosines.clip(-1, 1), scores, accepted)

    def _run(self, x: NDArray[Any]) -> list[NDArray[Any]]:
        try:
            return self._session.run([*self._outputs, COSINES], {self._input_name: np.ascontiguousarray(x)})
        except Exception as error:
            reason = f"cannot classify {len(x)} at a time: try a smaller batch size"
            raise InputError(f"{self._name} {reason} (onnxruntime: {first_line(error)})") from error

    def _nothing(self) -> list[NDArray[Any]]:
        kind = np.dtype(np.float32) if self.takes_images else self.input_dtype
        none = np.empty((0, len(self.class_names)), kind)
        ood = [] if self.ood is None else [np.empty(0, kind)]
        return [none, none, np.empty(0, np.int64), np.empty(0, kind), *ood, none]

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


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
