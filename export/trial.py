"""Open and run a new model in a child process, because a crash of onnxruntime would end this one.

onnxruntime optimises a graph when it opens it, and a fault there is a signal, not an exception: version 1.32 crashes on
`nn.MultiheadAttention` in fp16. The child opens the model with onnxruntime's default options and with those of this
package, and runs one batch with each.
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
    """A model that onnxruntime cannot open or run, or crashes on."""


def open_apart(data: bytes, precision: str) -> None:
    """Open and run a model, given as the contents of its file, in a new Python process.

    Raises
    ------
    TrialError
        If onnxruntime crashes on the model or refuses it.
    ExportError
        If the process cannot be started.
    """
    command = [sys.executable, "-P", "-c", f"from {__name__} import main; main()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # the same packages, wherever they lie
    try:
        child = subprocess.run(command, input=data, capture_output=True, env=environment, check=False)
    except OSError as error:
        raise ExportError(f"Python cannot be started to test the file: {error.strerror}") from error
    runtime = f"onnxruntime {onnxruntime.__version__}"
    try:
        fault = json.loads(child.stdout)["fault"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrialError(
            f"{runtime} crashes on this model in {precision}, and Python with it ({ending(child.returncode)})"
        ) from error
    if fault:
        raise TrialError(f"the model in {precision} does not run in {runtime}: {fault}")


def ending(status: int) -> str:
    """The reason for the end of a process, from its status: the signal, or the status in Windows' notation.

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
    """The reason in an error of onnxruntime, without its codes and paths.

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
    """The child process: read a model from standard input, and print its fault as JSON."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dump in the user's folder
    print(json.dumps({"fault": fault_of(sys.stdin.buffer.read())}))


def fault_of(data: bytes) -> str:
    """Why a model does not open or run; empty if it does."""
    try:
        session = onnxruntime.InferenceSession(data, providers=list(CPU))
        ours = OnnxClassifier.from_bytes(data)
        batch = np.zeros((2, *ours.input_shape), ours.input_dtype)
        session.run(None, {session.get_inputs()[0].name: batch})
        ours.predict(batch)
    except InputError as error:  # without a cause: the output is not finite, which the check reports
        return runtime_reason(error.__cause__) if error.__cause__ else ""
    except Exception as error:
        return runtime_reason(error.__cause__ or error)
    return ""
