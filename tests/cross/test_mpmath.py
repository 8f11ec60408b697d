"""Value, frame and gradient against independent code with sixty digits, by mpmath.

It computes the polar factor from singular values, completes a rank-deficient one from the start, and differentiates by
central differences with steps of 1e-20, whose error is 1e-40.
"""

import functools

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mp, mpf

import nearest_etf.reference as reference
import nearest_etf.torchport as torchport
from nearest_etf.reference.procrustes import initial_frame
from nearest_etf.reference.simplex import canonical_frame

DIGITS = 60
STEP = mpf("1e-20")
TINY = mpf("1e-18")  # smaller singular values are zero, except for the change by a step
DELTA = 0.3


def centring(K):
    return mpmath.eye(K) - mpmath.ones(K) / K


def polar(B):
    """The polar factor of B on its range: a partial isometry, and the projector onto its row space."""
    left, sigma, right = mpmath.svd_r(B)
    kept = [j for j in range(len(sigma)) if sigma[j] > TINY * max(sigma[0], TINY)]
    factor, rows = mpmath.zeros(B.rows, B.cols), mpmath.zeros(B.cols, B.cols)
    for j in kept:
        factor += left[:, j] * right[j, :]
        rows += right[j, :].T * right[j, :]
    return factor, rows


def solved(H, U0, formulation, start):
    """The frame, the value of (P) or (R), and that of (P′), `⟨U, A⟩`."""
    K, M = H.cols, centring(H.cols)
    A = 2 / mpmath.sqrt(K - 1) * H * M
    if U0 is not None:
        A += mpf(DELTA) * (U0 if formulation == "paper" else U0 * M)
    F, rows = polar(A)
    open_part = start * ((mpmath.eye(K) if formulation == "paper" else M) - rows)
    frame = F + polar(open_part - F * (F.T * open_part))[0]
    objective = mpmath.mnorm(H - frame * M / mpmath.sqrt(K - 1), "f") ** 2
    if U0 is not None:
        apart = frame - U0
        objective += mpf(DELTA) / 2 * mpmath.mnorm(apart if formulation == "paper" else apart * M, "f") ** 2
    return frame, objective, sum((frame.T * A)[k, k] for k in range(K))


def exact(array):
    """The mpmath matrix of the same entries."""
    return mpmath.matrix(np.asarray(array).tolist())


def rounded(matrix):
    return np.array(matrix.tolist(), dtype=np.float64)


class Case:
    """A problem in float64, a cotangent, a direction of its data, and answers with sixty digits."""

    def __init__(self, d, K, formulation, proximal=None, counts=None):
        rng = np.random.default_rng([d, K])
        self.formulation, self.counts = formulation, counts
        self.class_means, self.direction = rng.standard_normal((2, d, K)) if counts is None else self.batches(rng, d, K)
        self.proximal = None if proximal is None else initial_frame("random", self.class_means, rng)
        self.cotangent = rng.standard_normal((d, K))
        self.start = canonical_frame(d, K)
        self.name = f"({d}, {K}) {formulation}, {'δ=0' if proximal is None else 'δ=0.3'}, counts {counts}"

    def batches(self, rng, d, K):
        """Class means minus batch mean: exact, hence of exact rank, since the sum of the counts is a power of two."""
        for rows in rng.integers(-16, 17, (2, d, K)) / 8:
            yield (rows - rows @ self.counts[:, None] / self.counts.sum()) * (self.counts > 0)

    def at(self, H_step=None, U0_step=None):
        """Frame and values at H + H_step and U₀ + U0_step."""
        H, U0 = exact(self.class_means), None if self.proximal is None else exact(self.proximal)
        H = H if H_step is None else H + H_step
        U0 = U0 if U0_step is None else U0 + U0_step
        return solved(H, U0, self.formulation, exact(self.start))

    def along(self, direction, argument="H_step"):
        """The frame's derivative along a direction of one argument."""
        after, before = (self.at(**{argument: s * STEP * exact(direction)})[0] for s in (1, -1))
        return rounded((after - before) / (2 * STEP))

    @functools.cached_property
    def answers(self):
        """Frame, values, jvp, vjp with respect to H (None with counts), and jvp along one direction of U₀."""
        with mp.workdps(DIGITS):
            frame, *values = self.at()
            pushed = self.along(self.direction)
            entries = np.eye(self.class_means.size).reshape(-1, *self.class_means.shape)
            H_bar = None
            if self.counts is None:
                H_bar = np.array([np.vdot(self.cotangent, self.along(E)) for E in entries]).reshape(entries.shape[1:])
            along_U0 = self.along(self.direction, "U0_step") if self.proximal is not None else None
            return rounded(frame), [float(value) for value in values], pushed, H_bar, along_U0

    def check(self, frame, H_bar, U0_bar, tolerance):
        expected_frame, _, pushed, expected_H_bar, along_U0 = self.answers
        assert np.linalg.norm(frame - expected_frame) < tolerance
        size = np.linalg.norm(H_bar)
        assert abs(np.vdot(H_bar, self.direction) - np.vdot(self.cotangent, pushed)) < tolerance * 10 * size
        if expected_H_bar is not None:
            assert np.linalg.norm(H_bar - expected_H_bar) < tolerance * size
        if along_U0 is not None:
            assert abs(np.vdot(U0_bar, self.direction) - np.vdot(self.cotangent, along_U0)) < tolerance * 10 * size


CASES = [
    Case(5, 3, "paper", DELTA),
    Case(5, 3, "gauge-free", DELTA),
    Case(4, 4, "paper", DELTA),
    Case(3, 4, "gauge-free", DELTA),
    Case(5, 3, "paper"),
    Case(5, 3, "gauge-free"),
    Case(4, 4, "paper"),
    Case(3, 4, "gauge-free"),
    Case(6, 4, "paper", counts=np.array([1, 0, 2, 1])),
    Case(6, 5, "gauge-free", counts=np.array([1, 0, 2, 1, 0])),
    Case(4, 4, "paper", counts=np.array([3, 1, 0, 0])),
]
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@EVERY_CASE
@pytest.mark.parametrize("method", ["trust-region", "svd"])
@pytest.mark.filterwarnings("ignore::nearest_etf.reference.IllConditionedWarning")
def test_numpy_agrees_with_sixty_digits(case, method):
    solution = reference.nearest_etf(
        case.class_means, case.proximal, DELTA, method=method, formulation=case.formulation
    )
    case.check(solution.frame, *reference.nearest_etf_vjp(solution, case.cotangent), tolerance=1e-13)
    _, (objective, value), pushed, *_ = case.answers
    assert solution.objective == pytest.approx(objective, rel=1e-13)
    assert np.vdot(solution.variable, solution.linear_term) == pytest.approx(value, rel=1e-13)
    assert reference.nearest_etf_jvp(solution, case.direction) == pytest.approx(pushed, abs=1e-13)


@EVERY_CASE
@pytest.mark.parametrize("method", ["auto", "svd", "eigh", "matmul"])
@pytest.mark.filterwarnings("ignore:the polar factor of a matrix of condition number:RuntimeWarning")
def test_torch_agrees_with_sixty_digits(case, method):
    H = torch.tensor(case.class_means, requires_grad=True)
    U0 = None if case.proximal is None else torch.tensor(case.proximal, requires_grad=True)
    solution = torchport.solve(H, U0, DELTA, method=method, formulation=case.formulation)
    solution.frame.backward(torch.tensor(case.cotangent))
    assert H.grad is not None
    assert solution.value == pytest.approx(case.answers[1][1], rel=1e-12)
    U0_bar = None if U0 is None else U0.grad.numpy()
    case.check(solution.frame.detach().numpy(), H.grad.numpy(), U0_bar, tolerance=1e-13)
