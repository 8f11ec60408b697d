"""Writing of a model file and its sidecar, and verification of a file before it runs.

The sidecar `model.json` beside `model.onnx` contains the file's metadata, the report of its check, its SHA-256 and a
seal. Loading verifies the SHA-256, because onnxruntime runs many damaged files without an error.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from ..common.errors import first_line
from ..common.files import read_bytes, read_json, reading, replacing
from ..common.seals import sealed_json
from .contents import LARGEST_MODEL, check_contents, check_metadata
from .errors import InputError, ModelFileError

# Version of the metadata, one JSON object under METADATA_KEY. A change of meaning raises it; a new entry or value for
# new kinds of heads (such as temperature null: no normalisation) does not.
FORMAT = 1
FORMAT_WITH_OOD = 2  # of a file with the output OOD_SCORE, which versions up to 0.2.0 do not support
METADATA_KEY = "nearest_etf"
OUTPUTS = ("logits", "probabilities", "label", "cosine")
OOD_SCORE = "ood_score"  # (N,): the optional fifth output
COSINES = "cosines"  # (N, K): an inner value of every graph; the output `cosine` is one entry of each row
# These bytes, appended to a model, make COSINES an output, because protobuf merges consecutive parts of a message:
# ModelProto.graph.output.name, fields 7, 12 and 1.
WITH_COSINES = b"\x3a\x0b\x62\x09\x0a\x07" + COSINES.encode()
CPU = ("CPUExecutionProvider",)
MOST_THREADS = 1024


def writable_target(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """The path of a model file, after checking that it can be written.

    Raises
    ------
    ModelFileError
        If the suffix is not .onnx, the folder does not exist or is read-only, the path or its sidecar is a folder, or
        either of them exists and `overwrite` is false.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ModelFileError(f"{path} does not end in .onnx")
    if not path.parent.is_dir():
        raise ModelFileError(f"{path} cannot be written: {path.parent} is not a folder")
    for target in (path, path.with_suffix(".json")):
        if target.is_dir():
            raise ModelFileError(f"{target} is a folder")
        if target.exists() and not overwrite:
            raise ModelFileError(f"{target} exists: choose another name, or replace it by overwrite (--overwrite)")
    if not os.access(path.parent, os.W_OK):
        raise ModelFileError(f"{path} cannot be written: no permission to write in {path.parent}")
    return path


def write_model(path: Path, data: bytes, metadata: Mapping[str, Any], check: Mapping[str, Any]) -> None:
    """Write a model and its sidecar atomically; the model appears last."""
    sidecar = {"sha256": hashlib.sha256(data).hexdigest(), **metadata, "check": check}
    text = json.dumps(sealed_json(sidecar), indent=1, ensure_ascii=False) + "\n"
    try:
        with replacing(path) as model, replacing(path.with_suffix(".json")) as side:
            model.write(data)
            side.write(text.encode("utf-8"))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written: {error.strerror}") from error


def read_model(path: Path) -> tuple[bytes, bool]:
    """The contents of a model file, and whether they were verified by a sidecar; False without a sidecar.

    Raises
    ------
    ModelFileError
        If the file or its sidecar cannot be read, or the SHA-256 of the sidecar differs from the file's.
    """
    data = read_bytes(path, "a model that etf-export wrote", ModelFileError, LARGEST_MODEL)
    sidecar = path.with_suffix(".json")
    if not sidecar.exists():
        return data, False
    about = "the sidecar of a model, JSON with a sha256"
    contents = read_json(sidecar, about, ModelFileError)
    with reading(sidecar, about, ModelFileError):
        expected = str(contents["sha256"])
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ModelFileError(
            f"{path} is damaged, or {sidecar.name} belongs to another file: SHA-256 {found[:12]}… is "
            f"not the expected {expected[:12]}…"
        )
    return data, True


def open_session(data: bytes, name: str, threads: int, providers: Sequence[str] = CPU) -> onnxruntime.InferenceSession:
    """An onnxruntime session with a fixed number of threads, which sleep between calls instead of spinning.

    Raises
    ------
    InputError
        If `threads` is not in 1…MOST_THREADS, or a provider is not available or does not start on this machine.
    ModelFileError
        If the file is damaged, is not an ONNX model, or is refused by `check_contents`.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads is {threads}: expected at least 1 and at most {MOST_THREADS}")
    available = onnxruntime.get_available_providers()
    missing = [provider for provider in providers if provider not in available]
    if missing or not providers:
        found = f"{missing[0]!r} is not in this onnxruntime" if missing else "none are given"
        raise InputError(f"providers: {found}: expected some of {', '.join(available)} (a GPU needs onnxruntime-gpu)")
    check_contents(data, name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    for pool in ("intra", "inter"):
        options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
    # The CPU has no fallback, but onnxruntime would print that it uses one.
    chosen: dict[str, Any] = {"providers": list(providers), "enable_fallback": int(tuple(providers) != CPU)}
    try:
        try:
            session = onnxruntime.InferenceSession(data + WITH_COSINES, options, **chosen)
        except Exception:  # not a file of this package: the error is clearer without the appended bytes
            session = onnxruntime.InferenceSession(data, options, **chosen)
    except Exception as error:
        raise ModelFileError(f"{name} is damaged or not an ONNX model that can be run ({first_line(error)})") from error
    if idle := [provider for provider in providers if provider not in session.get_providers()]:
        raise InputError(f"providers: {idle[0]} does not start on this machine: check its drivers, or leave it out")
    return session


def read_metadata(session: onnxruntime.InferenceSession, name: str) -> dict[str, Any]:
    """The metadata of an open model file.

    Raises
    ------
    ModelFileError
        If the file has no metadata, invalid ones, or a newer format than this version reads.
    """
    try:
        metadata = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
        found = int(metadata["format"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"{name} was not written by etf-export: it has no metadata of this package") from error
    if found > FORMAT_WITH_OOD:
        versions = metadata.get("versions")
        writer = versions.get("nearest-etf") if isinstance(versions, dict) else None
        remedy = f"update nearest-etf to {writer} or later" if writer else "update nearest-etf"
        raise ModelFileError(f"{name} has format {found}, but this version reads format {FORMAT_WITH_OOD}: {remedy}")
    check_metadata(metadata, name)
    return dict(metadata)
