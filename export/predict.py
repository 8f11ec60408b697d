"""Classification with an exported file. It needs numpy and onnxruntime, and imports neither torch, scipy nor onnx."""

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
        Names of the predicted classes.
    probabilities : (N, K)
    cosines : (N,)
        Cosine between the feature and the row of W of the predicted class. For an ETF head this row is a vertex, and
        the cosine a geometric confidence: 1 at the vertex. The bias has no influence on it.
    logits : (N, K)
    class_cosines : (N, K)
        Cosines between the feature and all rows of W.
    ood_scores : (N,), optional
        None for a file without an OOD score. Larger scores indicate in-distribution images.
    accepted : (N,) bool, optional
        Whether the score reaches the file's threshold.

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
    """A classifier from a file that `etf-export` or `export_onnx` wrote. It can be pickled, for worker processes.

    Parameters
    ----------
    path : path
        The ONNX file. Its optional sidecar is `path` with the suffix `.json`.
    threads : int, optional
        Threads of one call. Default: the available cores, at most four; single images do not gain from more.
    providers : sequence of str, optional
        onnxruntime's execution providers in order of preference, such as `["CUDAExecutionProvider"]`. Default: the
        CPU, which also runs the operators that another provider lacks.

    Attributes
    ----------
    metadata : dict
        The file's metadata: preprocessing, head, certificate, versions.
    class_names : tuple of str
    input_shape : tuple of int
        Shape of one image (or feature vector), without the batch.
    input_dtype : numpy.dtype
    transform : PhotoTransform or None
        The preprocessing of photos for evaluation in training; None if the file does not record it.
    ood : dict or None
        The OOD score of the file: `score` (its name), `threshold`, and `share`, the share of `images` images of `split`
        that the threshold accepts. None for a file without a score.
    verified : bool
        Whether the file has the SHA-256 of its sidecar; False without a sidecar.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, does not match its sidecar, was not written by this package, or has a newer
        format than this version reads.
    InputError
        If a provider is not available on this machine, or `threads` is not positive.

    Warns
    -----
    UserWarning
        If the file cannot be verified, because it has no sidecar.

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
                f"{path} has no sidecar {path.with_suffix('.json').name}: it cannot be verified",
                stacklevel=2,
            )
        self._source: Path | bytes = path.absolute()
        self._open(data, str(path), threads, providers)

    @classmethod
    def from_bytes(cls, data: bytes, *, threads: int | None = None, providers: Sequence[str] | None = None) -> Self:
        """A classifier from the contents of a file, without verification."""
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
            raise ModelFileError(f"{self._name} has changed since the classifier was pickled: open it again")

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
            raise ModelFileError(f"{name} records a transform of photos that this version does not support") from error
        self.ood: dict[str, Any] | None = self.metadata.get("ood")
        if self.ood is not None and not np.isfinite(self.ood.get("threshold", np.nan)):
            raise ModelFileError(f"{name} records no threshold of its OOD score")
        self._outputs = [*OUTPUTS, *([] if self.ood is None else [OOD_SCORE])]
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        classes = outputs[0].shape[1:] if outputs else []
        interface = ([entry.name for entry in inputs], [entry.name for entry in outputs], classes)
        if interface != ([self._input_name], [*self._outputs, COSINES], [len(self.class_names)]):
            raise ModelFileError(f"{name} contradicts its own metadata: inputs, outputs and classes are {interface}")

    @property
    def takes_images(self) -> bool:
        """Whether the input is 8-bit pixels."""
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
        """An image file as an input of `predict`, of shape `input_shape`, preprocessed by `transform`.

        Parameters
        ----------
        path : path
        exact : bool
            Change no pixel, and refuse images of another size or mode than the model's input. Always true if the file
            records no transform.

        Raises
        ------
        PhotoError
            If the photo cannot be read or is refused.
        InputError
            If the input is not 8-bit pixels.
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
        """Classify a batch of any size, including an empty one.

        Parameters
        ----------
        images : (N, …), each of shape `input_shape`, of dtype `input_dtype`
        batch_size : int
            Images per run of the session; it bounds the memory.

        Raises
        ------
        InputError
            If the array has another shape, dtype or byte order, contains NaN or infinity, or the network's output is
            not finite.
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
            reason = f"cannot classify a batch of {len(x)}: try a smaller batch size"
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
            raise InputError(f"{self._input_name} cannot be converted to an array: expected {expected}") from error
        if x.dtype != self.input_dtype:
            order = "" if x.dtype.isnative else " in foreign byte order"
            raise InputError(f"{self._input_name} has dtype {x.dtype.name}{order}: expected {expected}")
        if x.shape[1:] != self.input_shape or x.ndim == 0:
            hint = "; for a single one write x[None]" if x.shape == self.input_shape else ""
            raise InputError(f"{self._input_name} has shape {x.shape}: expected {expected}{hint}")
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise InputError(f"{self._input_name} contains {int((~np.isfinite(x)).sum())} NaN or infinite values")
        return x


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
