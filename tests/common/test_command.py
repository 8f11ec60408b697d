"""The parser, the error lines and the exit statuses that all commands share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from nearest_etf import __version__
from nearest_etf.common.command import Parser, fail, printer, run_command
from nearest_etf.common.errors import UserError


def example() -> Parser:
    parser = Parser("etf-example", "Show something.", "\netf-example a --number 3    three\netf-example b")
    parser.add_argument("name")
    parser.add_argument("--number", type=int, default=1)
    return parser


def ended(parser: Parser, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a parser that exits."""
    with pytest.raises(SystemExit) as end:
        parser.parse_args(words)
    return int(str(end.value.code)), *capsys.readouterr()


def test_reads_arguments() -> None:
    given = example().parse_args(["a", "--number", "3", "--quiet"])
    assert (given.name, given.number, given.quiet) == ("a", 3, True)
    assert not example().parse_args(["a"]).quiet


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--nummer", "3"], "unknown flag '--nummer': did you mean '--number'?"),
        (["a", "--nummer=3"], "unknown flag '--nummer': did you mean '--number'?"),
        (["a", "--num", "3"], "unknown flag '--num': did you mean '--number'?"),
        (["a", "b"], "unexpected argument 'b'"),
        (["a", "--number", "x"], "argument --number: invalid int value: 'x'"),
        (
            ["a", "--number", str(10**20)],
            f"argument --number: {10**20} is too large: expected at most {2**63 - 1}",
        ),
        ([], "the following arguments are required: name"),
    ],
)
def test_bad_use_is_one_line_and_status_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = ended(example(), words, capsys)
    assert (status, out) == (2, "")
    assert err == f"etf-example: {message} (see etf-example --help)\n"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = ended(example(), ["--help"], capsys)
    assert (status, err) == (0, "")
    assert "examples:\n  etf-example a --number 3    three\n  etf-example b\n" in out
    assert ended(example(), ["--version"], capsys) == (0, f"etf-example {__version__}\n", "")


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    printer(True)("unheard", file=sys.stderr, flush=True)
    printer(False)("heard")
    assert capsys.readouterr() == ("heard\n", "")


class FailedCheck(UserError):
    """A failed check."""

    exit_status = 1


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("x is 3:\n  expected 4"), 2, "x is 3: expected 4"),
        (FailedCheck("a logit is off"), 1, "a logit is off"),
        (ModuleNotFoundError("no", name="torch"), 2, "torch is missing: pip install 'nearest-etf[train]'"),
        (ModuleNotFoundError("no", name="onnx.compose"), 2, "onnx is missing: pip install 'nearest-etf[train]'"),
        (PermissionError(13, "Permission denied", "out.json"), 2, "out.json: Permission denied"),
        (
            ImportError("DLL load failed", name="onnxruntime.capi"),
            2,
            "onnxruntime cannot be loaded (DLL load failed): ",
        ),
        (OSError("strange"), 2, "strange"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_end_a_command_in_one_line(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> int:
        raise error

    assert run_command("etf-example", body) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"etf-example: {message}")
    assert err.endswith("reinstall it\n" if "DLL" in message else f"{message}\n")


def test_a_command_names_its_own_extra(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise ModuleNotFoundError("no", name="PIL")

    assert run_command("etf-predict", body, extra="deploy") == 2
    assert capsys.readouterr().err == "etf-predict: PIL is missing: pip install 'nearest-etf[deploy]'\n"


def test_an_unknown_flag_is_named_before_a_missing_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean '--number'" in ended(example(), ["--numer", "3"], capsys)[2]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ModuleNotFoundError("no", name="nearest_etf.nowhere")])
def test_bugs_keep_their_traceback(error: Exception) -> None:
    def body() -> int:
        raise error

    with pytest.raises(type(error)):
        run_command("etf-example", body)


def test_the_exit_status_is_that_of_the_body(capsys: pytest.CaptureFixture[str]) -> None:
    assert [run_command("etf-example", lambda status=status: status) for status in (0, 1)] == [0, 1]  # type: ignore[misc]
    assert fail("etf-example", "two\n lines about 'a  name'", 7) == 7
    assert capsys.readouterr().err == "etf-example: two lines about 'a  name'\n"


@pytest.mark.parametrize("lines", [1, 100_000], ids=["within the buffer", "beyond the buffer"])
def test_a_closed_pipe_is_no_error(lines: int) -> None:
    script = f"""
import sys
from nearest_etf.common.command import run_command
def body():
    for line in range({lines}):
        print("line", line)
    return 0
sys.exit(run_command("etf-example", body))
"""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as out:
        result = subprocess.run([sys.executable, "-c", script], stdout=out, stderr=subprocess.PIPE, check=False)
    assert (result.returncode, result.stderr) == (0, b"")


CODE_PAGE_SCRIPT = """
import sys
from nearest_etf.common.command import Parser, fail, run_command
parser = Parser("etf-example", "Bounds of a check: ≤ 1e-5.", "etf-example    τ → ∞")
def body():
    print("max |Δ| 1e-6 ≤ 1e-5 × κ, caf\\udce9 \u732b")
    return fail("etf-example", "Δ ≥ 1", 1)
parser.parse_args()
sys.exit(run_command("etf-example", body))
"""


@pytest.mark.parametrize(
    ("encoding", "line"),
    [
        ("cp1252", "max |delta| 1e-6 <= 1e-5 × kappa, caf\\udce9 \\u732b"),
        ("ascii", "max |delta| 1e-6 <= 1e-5 \\xd7 kappa, caf\\udce9 \\u732b"),
        ("utf-8", "max |Δ| 1e-6 ≤ 1e-5 × κ, caf\\udce9 \u732b"),
    ],
)
def test_characters_missing_from_the_encoding_are_replaced(encoding: str, line: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", CODE_PAGE_SCRIPT]
    done = subprocess.run(command, capture_output=True, encoding=encoding, env=environment, check=False)
    assert (done.returncode, done.stdout) == (1, f"{line}\n")
    assert done.stderr == f"etf-example: {'Δ ≥ 1' if encoding == 'utf-8' else 'delta >= 1'}\n"
    helped = subprocess.run([*command, "--help"], capture_output=True, encoding=encoding, env=environment, check=False)
    assert helped.returncode == 0
    assert helped.stderr == ""
    assert "etf-example" in helped.stdout


def test_a_warning_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def body() -> int:
        warnings.warn("two\nlines", stacklevel=1)
        return 0

    def show(message: object, category: type, filename: str, lineno: int, *_: object) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))  # type: ignore[arg-type]

    before = warnings.formatwarning
    monkeypatch.setattr(warnings, "showwarning", show)
    assert run_command("etf-example", body) == 0
    assert capsys.readouterr().err == "etf-example: warning: two lines\n"
    assert warnings.formatwarning is before


def test_the_import_loads_neither_numpy_nor_torch() -> None:
    script = "import sys, nearest_etf.common.command; print({'numpy', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 4. TiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 256 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        ValueError("array is too big; `arr.size * arr.dtype.itemsize` is larger than the maximum possible size."),
    ],
)
def test_lack_of_memory_is_one_line_and_status_1(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise error

    assert run_command("etf-x", body) == 1
    assert capsys.readouterr().err == (
        f"etf-x: not enough memory ({error}): lower the batch size, or the size of the network\n"
    )


@pytest.mark.parametrize("consequence", [ImportError, SystemError, AttributeError])
def test_after_ctrl_c_any_error_counts_as_an_interruption(
    consequence: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)

    def body() -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise consequence("a library was loading") from error
        return 0

    assert run_command("etf-x", body) == 130
    assert capsys.readouterr().err == "etf-x: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(consequence):
        run_command("etf-x", lambda: (_ for _ in ()).throw(consequence("a bug")))


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def body() -> int:
        signal.raise_signal(signal.SIGINT)
        return 3

    try:
        assert run_command("etf-x", body) == 3
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


LOADING = "from nearest_etf.common.command import run_command\nrun_command('etf-x', lambda: __import__('slow'))"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no Ctrl-C to another process here")
@pytest.mark.parametrize("code", ["import nearest_etf.common.command, slow", LOADING])
def test_ctrl_c_while_a_command_loads_is_one_line(code: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint(flush=True)\ntime.sleep(9)\n")
    code = f"import sys\nsys.argv[0] = 'bin/etf-x'\nsys.path.insert(0, {str(tmp_path)!r})\n{code}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (130, "etf-x: interrupted\n")
