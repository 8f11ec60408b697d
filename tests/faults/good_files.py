"""Good files of every kind that a stranger may hand us, and the readers that they go through."""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from nearest_etf.common.errors import UserError
from nearest_etf.common.photo import PhotoTransform, evaluation_view, exact_pixels, training_view
from nearest_etf.export import OnnxClassifier
from nearest_etf.torchport.training.data.cifar import read_cifar_binary, read_cifar_python
from nearest_etf.torchport.training.data.idx import read_mnist
from nearest_etf.torchport.training.data.images import ImageData
from nearest_etf.torchport.training.data.split import Split
from nearest_etf.torchport.training.data.stl10 import read_stl10

MODELS = Path(__file__).parents[1] / "fixtures" / "written-by-0.1.0"
Folder = dict[str, bytes]  # files by name, the first of which is mutated


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes
    ----------
    samples : list of Folder
        Good ones.
    read : function
        What is read from a folder, as bytes that stand for all of it.
    sealed : bool
        Whether a checksum protects the file: it is then read as it was, or refused.
    """

    samples: list[Folder]
    read: Callable[[Path], bytes]
    sealed: bool = False
    is_json: bool = False


def all_kinds() -> dict[str, Kind]:
    """Every kind by its name."""
    return image_kinds() | data_kinds() | model_kinds()


def image_kinds() -> dict[str, Kind]:
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (40, 56, 3), np.uint8)).resize((56, 40))
    variants = [photo, photo.convert("L"), photo.convert("P")]
    with_alpha = photo.convert("RGBA")
    deep = Image.fromarray(rng.integers(0, 2**16, (20, 30)).astype(np.uint16))
    frames = [photo.convert("P"), photo.rotate(90).convert("P"), photo.rotate(180).convert("P")]
    exif = Image.Exif()
    exif[0x0112] = 6
    made: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "png": [(v, {}) for v in (*variants, with_alpha, deep)],
        "jpeg": [(photo, {"exif": exif}), (photo.convert("L"), {"progressive": True}), (photo.convert("CMYK"), {})],
        "tiff": [(photo, {}), (photo, {"compression": "tiff_lzw"}), (deep, {}), (photo, {"compression": "jpeg"})],
        "gif": [(frames[0], {}), (frames[0], {"save_all": True, "append_images": frames[1:]})],
        "webp": [(photo, {}), (with_alpha, {"lossless": True})],
        "bmp": [(v, {}) for v in variants],
        "ppm": [(photo, {}), (photo.convert("L"), {})],
    }
    return {
        kind: Kind([{f"image.{kind}": saved(image, kind, options)} for image, options in images], read_image)
        for kind, images in made.items()
    }


def saved(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read_image(folder: Path) -> bytes:
    (path,) = folder.iterdir()
    transform = PhotoTransform(16, 16)
    views = [evaluation_view(path, transform), training_view(path, transform, np.random.default_rng(0), flip=True)]
    with contextlib.suppress(UserError):  # stricter than the other two
        views.append(exact_pixels(path, (40, 56, 3)))
    return b"".join(view.tobytes() for view in views)


def data_kinds() -> dict[str, Kind]:
    rng = np.random.default_rng(1)
    pixels, labels = rng.integers(0, 256, (9, 8, 8), np.uint8), np.arange(9, dtype=np.uint8)
    images, classes = idx(pixels), idx(labels)
    records = np.concatenate([labels[:3, None], rng.integers(0, 256, (3, 3072), np.uint8)], 1).tobytes()
    python = {b"data": rng.integers(0, 256, (3, 3072), np.uint8), b"labels": [3, 1, 2], b"filenames": [b"a.png"] * 3}
    stl = rng.integers(0, 256, 2 * 3 * 96 * 96, np.uint8).tobytes()
    return {
        "idx": Kind([{"images": images, "labels": classes}, {"labels": classes, "images": images}], read_idx_pair),
        "idx-gz": Kind(
            [{"images": gzip.compress(images), "labels": gzip.compress(classes)}], read_idx_pair, sealed=True
        ),
        "cifar-binary": Kind([{"batch": records}], lambda f: as_data(*read_cifar_binary(f / "batch"))),
        "cifar-python": Kind(
            [{"batch": pickle.dumps(python, protocol)} for protocol in (2, 4)],
            lambda f: as_data(*read_cifar_python(f / "batch")),
        ),
        "stl10": Kind(
            [{"images": stl, "labels": b"\x01\x0a"}, {"labels": b"\x01\x0a", "images": stl}],
            lambda f: as_data(*read_stl10(f / "images", f / "labels")),
        ),
    }


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def read_idx_pair(folder: Path) -> bytes:
    return as_data(*read_mnist(folder / "images", folder / "labels"))


def as_data(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    split = Split(images, labels)
    channels = (0.5,) * images.shape[-1]
    data = ImageData("mutated", split, None, None, tuple("0123456789"), channels, channels)
    return images.tobytes() + labels.tobytes() + str(data.image_shape).encode()


def model_kinds() -> dict[str, Kind]:
    model, sidecar = (MODELS / "model.onnx").read_bytes(), (MODELS / "model.json").read_bytes()
    head, head_sidecar = (MODELS / "head.onnx").read_bytes(), (MODELS / "head.json").read_bytes()
    return {
        "onnx": Kind([{"model.onnx": model}, {"model.onnx": head}], read_model),
        "onnx-verified": Kind(
            [{"model.onnx": model, "model.json": sidecar}, {"model.onnx": head, "model.json": head_sidecar}],
            read_model,
            sealed=True,
        ),
        "sidecar": Kind([{"model.json": sidecar, "model.onnx": model}], read_model, sealed=True, is_json=True),
        "metadata": Kind(
            [{"metadata": metadata_of(model)}, {"metadata": metadata_of(head)}], read_metadata, is_json=True
        ),
    }


def metadata_of(model: bytes) -> bytes:
    entries = onnx.ModelProto.FromString(model).metadata_props
    return next(entry.value for entry in entries if entry.key == "nearest_etf").encode()


def read_model(folder: Path) -> bytes:
    return answers(OnnxClassifier(folder / "model.onnx", threads=1))


def read_metadata(folder: Path) -> bytes:
    """The model file with these metadata."""
    text = (folder / "metadata").read_bytes().decode("utf-8", "replace")
    model = onnx.ModelProto.FromString((MODELS / ("head.onnx" if '"NF"' in text else "model.onnx")).read_bytes())
    for entry in model.metadata_props:
        if entry.key == "nearest_etf":
            entry.value = text
    return answers(OnnxClassifier.from_bytes(model.SerializeToString(), threads=1))


def answers(classifier: OnnxClassifier) -> bytes:
    batch = np.ones((2, *classifier.input_shape), classifier.input_dtype)
    prediction = classifier.predict(batch)
    repr((prediction.names, classifier.transform, classifier.ood, classifier.layout, classifier.image_shape))
    return prediction.logits.tobytes()
