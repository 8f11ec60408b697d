"""A model file and its sidecar: how they are written, and how a file is verified before it runs.

The sidecar `model.json` beside `model.onnx` holds the file's metadata, the report of its check, its SHA-256, which is
verified on loading (onnxruntime runs many damaged files without a complaint), and a seal of its own.
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

# Of the metadata, one JSON object under METADATA_KEY. A change of meaning raises it; an entry or a value that only new
# kinds of heads have (temperature null: features as they come) does not.
FORMAT = 1
FORMAT_WITH_OOD = 2  # of a file with the output OOD_SCORE, which versions up to 0.2.0 do not expect
METADATA_KEY = "nearest_etf"
OUTPUTS = ("logits", "probabilities", "label", "cosine")
OOD_SCORE = "ood_score"  # (N,): a fifth output of files that were exported with one
COSINES = "cosines"  # (N, K): a value inside the graph of every file, of which `cosine` is one entry
# Behind a model's bytes it makes that value an output: protobuf merges parts of a message that follow each other, here
# ModelProto.graph.output.name, fields 7, 12 and 1.
WITH_COSINES = b"\x3a\x0b\x62\x09\x0a\x07" + COSINES.encode()
CPU = ("CPUExecutionProvider",)


def writable_target(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """The path of a model file that may be written.

    Raises
    ------
    ModelFileError
        If it has another suffix, its folder does not exist or is read-only, or it exists and `overwrite` is false.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ModelFileError(f"{path} does not end in .onnx")
    if not path.parent.is_dir():
        raise ModelFileError(f"{path} cannot be written: {path.parent} is no folder")
    for target in (path, path.with_suffix(".json")):
        if target.is_dir():
            raise ModelFileError(f"{target} is a folder")
        if target.exists() and not overwrite:
            raise ModelFileError(f"{target} exists: choose another name, or replace it by overwrite (--overwrite)")
    if not os.access(path.parent, os.W_OK):
        raise ModelFileError(f"{path} cannot be written: no permission to write in {path.parent}")
    return path


def write_model(path: Path, data: bytes, metadata: Mapping[str, Any], check: Mapping[str, Any]) -> None:
    """Write a model and its sidecar, each whole or not at all; the model appears last."""
    sidecar = {"sha256": hashlib.sha256(data).hexdigest(), **metadata, "check": check}
    text = json.dumps(sealed_json(sidecar), indent=1, ensure_ascii=False) + "\n"
    try:
        with replacing(path) as model, replacing(path.with_suffix(".json")) as side:
            model.write(data)
            side.write(text.encode("utf-8"))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written: {error.strerror}") from error


def read_model(path: Path) -> tuple[bytes, bool]:
    """The contents of a model file, and whether a sidecar vouches for them; False where there is none.

    Raises
    ------
    ModelFileError
        If the file or its sidecar cannot be read, or the sidecar belongs to other contents.
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
    """An onnxruntime session with explicit threads that sleep, rather than spin, between calls.

    Raises
    ------
    InputError
        If `threads` is not positive, or a provider is not there, or does not start, on this machine.
    ModelFileError
        If the file is damaged or no ONNX model, or holds what `check_contents` refuses.
    """
    if threads < 1:
        raise InputError(f"threads is {threads}: expected at least 1")
    available = onnxruntime.get_available_providers()
    missing = [provider for provider in providers if provider not in available]
    if missing or not providers:
        found = f"{missing[0]!r} is not in this onnxruntime" if missing else "none are given"
        raise InputError(f"providers: {found}: expected some of {', '.join(available)} (GPUs need onnxruntime-gpu)")
    check_contents(data, name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    for pool in ("intra", "inter"):
        options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
    # From the CPU there is nothing to fall back to, and onnxruntime would print that it does.
    chosen: dict[str, Any] = {"providers": list(providers), "enable_fallback": int(tuple(providers) != CPU)}
    try:
        try:
            session = onnxruntime.InferenceSession(data + WITH_COSINES, options, **chosen)
        except Exception:  # no file of ours: what is wrong with it is better said without the addition
            session = onnxruntime.InferenceSession(data, options, **chosen)
    except Exception as error:
        raise ModelFileError(f"{name} is damaged or no ONNX model that can be run ({first_line(error)})") from error
    if idle := [provider for provider in providers if provider not in session.get_providers()]:
        raise InputError(f"providers: {idle[0]} does not start on this machine: look at its drivers, or leave it out")
    return session


def read_metadata(session: onnxruntime.InferenceSession, name: str) -> dict[str, Any]:
    """The metadata of an open model file.

    Raises
    ------
    ModelFileError
        If it has none, or metadata of a newer format than this version reads.
    """
    try:
        metadata = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
        found = int(metadata["format"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"{name} was not written by etf-export: it has no metadata of a model") from error
    if found > FORMAT_WITH_OOD:
        versions = metadata.get("versions")
        writer = versions.get("nearest-etf") if isinstance(versions, dict) else None
        remedy = f"update nearest-etf to {writer} or later" if writer else "update nearest-etf"
        raise ModelFileError(f"{name} has format {found}, but this version reads format {FORMAT_WITH_OOD}: {remedy}")
    check_metadata(metadata, name)
    return dict(metadata)
