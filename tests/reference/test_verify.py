"""Every claim holds on the bank, and every mutation of a formula fails at least one claim."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nearest_etf
import nearest_etf.common
import nearest_etf.reference
from nearest_etf.reference.problems import problem_bank
from nearest_etf.reference.verify import CLAIMS, table, verify

GRADIENT = "tight_frame_gradient.py"

# (file, formula, broken formula)
MUTANTS = {
    "sign of Ω in the gradient": ("implicit.py", "2.0 * skew(X.T @ G)", "-2.0 * skew(X.T @ G)"),
    "factor 2 of the Lyapunov equation": ("implicit.py", "2.0 * skew(X.T @ G)", "skew(X.T @ G)"),
    "normal part of the gradient left out": ("implicit.py", "X @ Phi + ((normal @ V) / sigma) @ V.T", "X @ Phi"),
    "P instead of its inverse": ("implicit.py", "((normal @ V) / sigma) @ V.T", "((normal @ V) * sigma) @ V.T"),
    "M left out of the gradient": ("implicit.py", "* centred(A_bar)", "* A_bar"),
    "proximal cotangent left out": ("implicit.py", "solution.delta * A_bar", "0.0 * A_bar"),
    "completed part of the cotangent left out": ("implicit.py", "F_bar - B_bar @ (D.T @ F)", "F_bar"),
    "completed part of the tangent left out": ("implicit.py", "B_dot = -F_dot @ (F.T @ D)", "B_dot = 0.0"),
    "row space of A left out": ("implicit.py", "X, A, S = X @ R, A @ R, R if S is None else S @ R", "pass"),
    "factor 2 of A": ("procrustes.py", "A *= 2.0 / np.sqrt(K - 1)", "A *= 1.0 / np.sqrt(K - 1)"),
    "norm of the ETF in A": ("procrustes.py", "A *= 2.0 / np.sqrt(K - 1)", "A *= 2.0 / np.sqrt(K)"),
    "M left out of A": ("procrustes.py", "A = centred(H) if Q", "A = H.copy() if Q"),
    "sign of the proximal term": ("procrustes.py", "A += delta * (U0", "A -= delta * (U0"),
    "scale of the classifier": ("procrustes.py", "return np.sqrt(K / (K - 1))", "return np.sqrt(K)"),
    "symmetric part in the projection": ("stiefel.py", "return Z - U @ sym(U.T @ Z)", "return Z - U @ (U.T @ Z)"),
    "multiplier in the Hessian": ("riemannian.py", "problem.hessian(U, V) - V @ S", "problem.hessian(U, V) + V @ S"),
    "curvature of the exact step": ("spectral.py", "pairs = 0.5 * (eigen", "pairs = 1.0 * (eigen"),
    "coordinates of the transposed problem": ("frames.py", "B[:, -1:] / (np.sqrt(K) - 1.0)", "B[:, -1:] / np.sqrt(K)"),
    "… and back": ("frames.py", "total / (root * (root - 1.0))", "total / root"),
    "factor 2 of A, tight frame": (
        "tight_frame.py",
        "A = (2.0 / np.sqrt(self.rank))",
        "A = (1.0 / np.sqrt(self.rank))",
    ),
    "sign of Ω, tight frame": (GRADIENT, "Omega = (inner - inner.T)", "Omega = (inner.T - inner)"),
    "I − FᵀF left out": (GRADIENT, "L @ (outside_rows / sigma[:, None])", "L @ (LV / sigma[:, None])"),
    "completed part of the cotangent, tight frame": (GRADIENT, "W_bar = G - (E + E.T) @ W", "W_bar = G"),
    "completed part of the tangent, tight frame": (GRADIENT, "B_dot = -(turn + turn.T)", "B_dot = -turn"),
    "proximal cotangent, tight frame": (GRADIENT, "solution.delta * A_bar", "0.0 * A_bar"),
    "scale of the tight rows": ("equal_norm.py", "np.sqrt(K / min(d, K - 1)) * F.T", "np.sqrt(K / d) * F.T"),
    "norms of the alternating projections": ("equal_norm.py", "F / np.where(zero, 1.0, lengths)", "F"),
    "rank of a tight frame": ("geometry.py", "rank = min(d, K - 1)", "rank = d"),
    "Welch's bound": ("geometry.py", "(K - d) / (d * (K - 1))", "(K - d) / (d * K)"),
    "scale of the simplex": ("simplex.py", "np.sqrt(num_classes / (num_classes - 1)) * M", "1.0 * M"),
    "rate of the moving average": ("class_means.py", "2.0 / (self.steps + 1)", "1.0 / (self.steps + 1)"),
    "rate at first sight": ("class_means.py", "self.batches == 1, 1.0", "self.batches == 1, step_rate"),
    "rate of a class": ("class_means.py", "2.0 / (self.batches + 1)", "2.0 / (self.batches + 2)"),
}


def test_every_claim_holds_on_the_bank():
    checks = verify(problem_bank([(4, 4), (2, 3), (10, 6)]))
    assert [check.name for check in checks] == [claim.name for claim in CLAIMS]
    assert all(check.passed for check in checks), table(checks)


def test_every_claim_holds_for_float32_class_means():
    assert all(check.passed for check in verify(problem_bank([(6, 3)], conditions=(1.0, 1e2), dtype="float32")))


@pytest.fixture(scope="module")
def mutant(tmp_path_factory):
    """The path of `reference` in the package `mutant`, a copy of root, common and reference."""
    package = tmp_path_factory.mktemp("mutants") / "mutant"
    package.mkdir()
    shutil.copy(nearest_etf.__file__, package)
    for room in (nearest_etf.common, nearest_etf.reference):
        source, name = Path(room.__file__).parent, room.__name__.rpartition(".")[2]
        shutil.copytree(source, package / name, ignore=shutil.ignore_patterns("__pycache__"))
    return package / "reference"


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_formula_fails(name, mutant):
    file, right, wrong = MUTANTS[name]
    source = (mutant / file).read_text(encoding="utf-8")
    assert source.count(right) == 1, f"{file} does not hold {right!r} exactly once: update the mutant"
    (mutant / file).write_text(source.replace(right, wrong), encoding="utf-8")
    try:
        run = verify_mutant(mutant)
    finally:
        (mutant / file).write_text(source, encoding="utf-8")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "FAILED" in run.stdout


def test_the_unchanged_copy_passes(mutant):
    run = verify_mutant(mutant)
    assert run.returncode == 0, run.stdout + run.stderr


def verify_mutant(mutant):
    return subprocess.run(
        [sys.executable, "-B", "-m", "mutant.reference.etf_verify", "--sizes", "5x3"],
        cwd=mutant.parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
