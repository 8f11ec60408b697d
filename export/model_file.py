"""A model file before it is trusted: its checksum, and the onnxruntime session that runs it.

The sidecar `model.json` beside a file has the file's SHA-256, which is verified: onnxruntime happily
runs a good part of all damaged files.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import onnxruntime

from .errors import InputError, ModelFileError, first_line

FORMAT = 1  # of the metadata, one JSON object under this key
METADATA_KEY = "nearest_etf"
OUTPUTS = ("logits", "probabilities", "label", "cosine")


def available_cores() -> int:
    """Cores that this process may use, four at most: beyond that single images gain nothing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


def open_session(data: bytes, name: str, threads: int) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU with explicit threads that sleep, rather than spin, between calls."""
    if threads < 1:
        raise InputError(f"threads is {threads}: expected at least 1")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    for pool in ("intra", "inter"):
        options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelFileError(f"{name} is damaged or no ONNX model that can be run ({first_line(error)})") from error


def matches_sidecar(path: Path, data: bytes) -> bool:
    """Whether the sidecar of a model file vouches for its contents; False where there is none.

    Raises
    ------
    ModelFileError
        If the sidecar cannot be read, or speaks of other contents.
    """
    sidecar = path.with_suffix(".json")
    if not sidecar.exists():
        return False
    try:
        expected = json.loads(sidecar.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{sidecar} is not the sidecar of a model: expected JSON with a sha256") from error
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ModelFileError(
            f"{path} is damaged, or {sidecar.name} belongs to another file: SHA-256 {found[:12]}… is "
            f"not the expected {str(expected)[:12]}…"
        )
    return True
