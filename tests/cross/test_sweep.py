"""The first problems of benchmarks/sweep.py, which checks 31,000: every solver, every kind, both precisions."""

import importlib.util
import sys
from pathlib import Path

import numpy as np

PATH = Path(__file__).parents[2] / "benchmarks" / "sweep.py"
SPEC = importlib.util.spec_from_file_location("sweep", PATH)
assert SPEC is not None
assert SPEC.loader is not None
sweep = sys.modules["sweep"] = importlib.util.module_from_spec(SPEC)  # where dataclasses look up their module
SPEC.loader.exec_module(sweep)


def test_first_problems_of_the_sweep_are_solved_by_every_solver():
    found = sweep.sweep(240)
    assert found.failures == [], f"{len(found.failures)} failures\n{found.table()}"
    assert set(found.kinds) == set(sweep.KINDS)
    solvers = ["NumPy svd", "NumPy trust-region", *(f"torch {method}" for method in sweep.METHODS)]
    assert set(found.tallies) == {(solver, dtype) for solver in solvers for dtype in ("float32", "float64")}
    torch_tally = found.tallies["torch auto", "float64"]
    assert torch_tally.compared["gradient"] == torch_tally.problems
    assert torch_tally.compared["ETF"] > 100
    assert "torch matmul" in found.table()


def test_problems_depend_on_seed_and_index_alone():
    one, same, other = sweep.draw(0, 7), sweep.draw(0, 7), sweep.draw(1, 7)
    assert np.array_equal(one.class_means, same.class_means)
    assert one.name == same.name != other.name


def test_every_check_fails_for_a_wrong_answer():
    problem = sweep.draw(0, 14)  # full rank, well-conditioned
    truth = sweep.Truth.of(problem)
    frame, gradient, _ = sweep.by_torch(problem, "svd")
    other = problem.by_reference("svd").frame[::-1]  # a frame, but not the nearest
    wrong = {
        "orthonormality": (frame + 1e-9, gradient),
        "gap": (other, gradient),
        "ETF": (other, gradient),
        "gradient": (frame, 1.000001 * gradient),
    }
    assert all(figure <= bound for figure, bound in truth.figures(problem, frame, gradient).values())
    for check, answer in wrong.items():
        figure, bound = truth.figures(problem, *answer)[check]
        assert figure > bound, check
    assert sweep.Tally().add(truth.figures(problem, frame, np.full_like(gradient, np.nan)), 0) != []


def test_a_solver_that_raises_is_a_failure(monkeypatch):
    monkeypatch.setattr(sweep, "solve", lambda *_, **__: 1 / 0)
    found = sweep.sweep(1)
    assert len(found.failures) == len(sweep.METHODS)
    assert "torch svd: ZeroDivisionError: division by zero" in found.failures[0]
