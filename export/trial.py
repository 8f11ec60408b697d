"""Open a new file in a process of its own before it takes its name: what kills onnxruntime takes Python along.

onnxruntime optimises a graph when it opens it, and a fault there ends in a signal, not in an exception (1.32 dies so on
fp16 of `nn.MultiheadAttention`). The child opens the file as anybody would, with the default options, then as this
package does, and runs one batch.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import onnxruntime

from ..common.errors import first_line
from .errors import ExportError, InputError
from .model_file import CPU
from .predict import OnnxClassifier


class TrialError(ExportError):
    """A model that onnxruntime cannot open or run, or dies of."""


def open_apart(data: bytes, precision: str) -> None:
    """Open and run a model, the contents of its file, in a fresh Python.

    Raises
    ------
    TrialError
        If it dies of it, or onnxruntime refuses the model.
    """
    command = [sys.executable, "-P", "-c", f"from {__name__} import main; main()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # the same packages, wherever they lie
    try:
        child = subprocess.run(command, input=data, capture_output=True, env=environment, check=False)
    except OSError as error:
        raise ExportError(f"Python cannot be started to open the file on trial: {error.strerror}") from error
    runtime = f"onnxruntime {onnxruntime.__version__}"
    try:
        fault = json.loads(child.stdout)["fault"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrialError(
            f"{runtime} dies of this model in {precision} ({ending(child.returncode)}), and any Python with it"
        ) from error
    if fault:
        raise TrialError(f"the model in {precision} does not run in {runtime}: {fault}")


def ending(status: int) -> str:
    """How a process ended, from its status: the signal's name, or the status as Windows writes it.

    >>> ending(-11), ending(0xC0000005), ending(1)
    ('SIGSEGV', 'status 0xc0000005', 'status 1')
    """
    if status < 0:
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"
    return f"status {status:#x}" if status > 255 else f"status {status}"


def runtime_reason(error: BaseException) -> str:
    """What onnxruntime complains of, without its own codes and paths.

    >>> runtime_reason(RuntimeError("[ONNXRuntimeError] : 1 : FAIL : while running Add node. Name:'sum' Status: /a.h"))
    "its node 'sum' (Add) fails"
    >>> runtime_reason(RuntimeError("[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model."))
    'This is an invalid model.'
    """
    text = first_line(error)
    if node := re.search(r"running (\w+) node\. Name:'([^']*)'", text):
        return f"its node {node[2]!r} ({node[1]}) fails"
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)


def main() -> None:
    """The child: a model on standard input, what is wrong with it, as JSON, on standard output."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no dump in the user's folder
    print(json.dumps({"fault": fault_of(sys.stdin.buffer.read())}))


def fault_of(data: bytes) -> str:
    """What is wrong with a model; empty where it opens and runs."""
    try:
        session = onnxruntime.InferenceSession(data, providers=list(CPU))
        ours = OnnxClassifier.from_bytes(data)
        batch = np.zeros((2, *ours.input_shape), ours.input_dtype)
        session.run(None, {session.get_inputs()[0].name: batch})
        ours.predict(batch)
    except InputError as error:  # an output that is not finite is for the check to judge
        return runtime_reason(error.__cause__) if error.__cause__ else ""
    except Exception as error:
        return runtime_reason(error.__cause__ or error)
    return ""
