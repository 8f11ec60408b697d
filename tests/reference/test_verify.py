"""`etf-verify` passes, says how sure each figure is, and fails for every formula that is broken on purpose."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nearest_etf.reference
from nearest_etf.reference.etf_verify import main, table
from nearest_etf.reference.problems import problem_bank
from nearest_etf.reference.verify import CLAIMS, verify

SOURCE = Path(nearest_etf.reference.__file__).parent
SMALL = ["--sizes", "5x3"]

# (file, what stands there, what to put there instead)
MUTANTS = {
    "sign of Ω in the gradient": ("implicit.py", "2.0 * skew(X.T @ G)", "-2.0 * skew(X.T @ G)"),
    "factor 2 of the Lyapunov equation": ("implicit.py", "2.0 * skew(X.T @ G)", "skew(X.T @ G)"),
    "normal part of the gradient left out": ("implicit.py", "X @ Phi + ((normal @ V) / sigma) @ V.T", "X @ Phi"),
    "P instead of its inverse": ("implicit.py", "((normal @ V) / sigma) @ V.T", "((normal @ V) * sigma) @ V.T"),
    "M left out of the gradient": ("implicit.py", "* _centred(to_frame)", "* to_frame"),
    "proximal cotangent left out": ("implicit.py", "solution.delta * to_frame", "0.0 * to_frame"),
    "gauge derivative left out": ("implicit.py", "np.outer(w_bar, X.T @ c)", "0.0 * np.outer(w_bar, X.T @ c)"),
    "factor 2 of A": ("nearest_etf.py", "A *= 2.0 / np.sqrt(K - 1)", "A *= 1.0 / np.sqrt(K - 1)"),
    "norm of the ETF in A": ("nearest_etf.py", "A *= 2.0 / np.sqrt(K - 1)", "A *= 2.0 / np.sqrt(K)"),
    "M left out of A": ("nearest_etf.py", "A = _centred(H) if Q", "A = H.copy() if Q"),
    "sign of the proximal term": ("nearest_etf.py", "A += delta * (U0", "A -= delta * (U0"),
    "scale of the classifier": ("nearest_etf.py", "classifier=np.sqrt(K / (K - 1))", "classifier=np.sqrt(K)"),
    "symmetric part in the projection": ("stiefel.py", "return Z - U @ sym(U.T @ Z)", "return Z - U @ (U.T @ Z)"),
    "multiplier in the Hessian": ("trust_region.py", "problem.hessian(U, V) - V @ S", "problem.hessian(U, V) + V @ S"),
    "curvature of the exact step": ("spectral.py", "pairs = 0.5 * (eigen", "pairs = 1.0 * (eigen"),
    "scale of the simplex": ("simplex.py", "np.sqrt(num_classes / (num_classes - 1)) * M", "1.0 * M"),
    "rate of the moving average": ("class_means.py", "2.0 / (self.steps + 1)", "1.0 / (self.steps + 1)"),
}


def test_every_claim_holds_on_the_bank():
    checks = verify(problem_bank([(4, 4), (2, 3), (10, 6)]))
    assert [check.name for check in checks] == [claim.name for claim in CLAIMS]
    assert all(check.passed for check in checks), table(checks)


def test_float32_class_means_pass_too():
    assert all(check.passed for check in verify(problem_bank([(6, 3)], conditions=(1.0, 1e2), dtype="float32")))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_formula_fails(name, tmp_path):
    file, right, wrong = MUTANTS[name]
    shutil.copytree(SOURCE, tmp_path / "mutant", ignore=shutil.ignore_patterns("__pycache__"))
    source = (tmp_path / "mutant" / file).read_text(encoding="utf-8")
    assert source.count(right) == 1, f"{file} no longer holds {right!r} once: mend the mutant"
    (tmp_path / "mutant" / file).write_text(source.replace(right, wrong), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "mutant.cli", *SMALL],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert "FAILED" in run.stdout


def test_command_prints_the_table_and_writes_json_and_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    report, picture = tmp_path / "checks.json", tmp_path / "convergence.png"
    assert main([*SMALL, "--seeds", "1", "--json", str(report), "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert f"{len(CLAIMS)} of {len(CLAIMS)} checks passed" in out
    figures = json.loads(report.read_text())
    assert figures["passed"]
    assert len(figures["checks"]) == len(CLAIMS)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "5by3"], "expected DxK"),
        (["--sizes", "1x3"], "at least K−1 features"),
        (["--sizes", "3x1"], "K ≥ 2 classes"),
        (["--seeds", "0"], "whole number of at least 1"),
        (["--json", "/no/such/folder/x.json"], "does not exist"),
    ],
)
def test_bad_use_is_one_clear_line_and_status_two(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_reference_imports_nothing_but_numpy_and_scipy():
    program = (
        "import sys, nearest_etf.reference.etf_verify;"
        "roots = {name.partition('.')[0] for name in sys.modules};"
        "print(sorted(roots & {'torch', 'onnx', 'onnxruntime', 'matplotlib', 'autograd', 'sklearn', 'pymanopt'}))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
