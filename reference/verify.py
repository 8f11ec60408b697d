"""The numerical verification: a table of claims, each measured on a bank of problems.

Every claim is checked against an independent formula:

- the gradient of (P′) against the paper's own objective;
- the trust region against the SVD and SciPy;
- the closed-form derivative against the dense declarative form and finite differences.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .claims import Case, Claim
from .claims_gradient import GRADIENT_CLAIMS
from .claims_metrics import METRIC_CLAIMS
from .claims_problem import PROBLEM_CLAIMS
from .claims_solution import SOLUTION_CLAIMS
from .claims_tight_frame import TIGHT_FRAME_CLAIMS
from .problems import NearestETFProblem

CLAIMS = (*PROBLEM_CLAIMS, *SOLUTION_CLAIMS, *GRADIENT_CLAIMS, *TIGHT_FRAME_CLAIMS, *METRIC_CLAIMS)


@dataclass(frozen=True)
class Check:
    """The result of a claim: its worst figure, and the problem with that figure."""

    name: str
    figure: float
    bound: float
    at_least: bool
    passed: bool
    problems: int
    worst: str


def verify(problems: Iterable[NearestETFProblem]) -> list[Check]:
    """Measure every claim on every problem.

    Returns
    -------
    list of Check
        In the order of `CLAIMS`, without claims that apply to none of the problems.

    Examples
    --------
    >>> from nearest_etf.reference.problems import problem_bank
    >>> checks = verify(problem_bank([(5, 3)], seeds=1))
    >>> all(check.passed for check in checks)
    True
    """
    figures: dict[str, list[tuple[float, str]]] = {claim.name: [] for claim in CLAIMS}
    for problem in problems:
        case = Case(problem)
        for claim in CLAIMS:
            try:
                figure = claim.measure(case)
            except ValueError:  # one function refuses the result of another, which is a failure too
                figure = np.nan
            if figure is not None:
                figures[claim.name].append((figure, problem.name))
    return [_check(claim, figures[claim.name]) for claim in CLAIMS if figures[claim.name]]


def _check(claim: Claim, figures: list[tuple[float, str]]) -> Check:
    excess = [-f if claim.at_least else f for f, _ in figures]
    figure, worst = figures[int(np.argmax(np.where(np.isnan(excess), np.inf, excess)))]
    passed = figure >= claim.bound if claim.at_least else figure <= claim.bound
    return Check(claim.name, figure, claim.bound, claim.at_least, bool(passed), len(figures), worst)


def table(checks: list[Check]) -> str:
    """The checks as lines of text: name, worst figure, bound, verdict, and the problem with the worst figure."""
    width = max(len(check.name) for check in checks)
    lines = [f"{'check':{width}}  {'worst':>9}    {'bound':>7}  result  worst at"]
    for check in checks:
        relation = "≥" if check.at_least else "≤"
        figure = f"{check.figure:9.2f}" if check.at_least else f"{check.figure:9.1e}"
        bound = f"{check.bound:7.2f}" if check.at_least else f"{check.bound:7.0e}"
        verdict = "pass" if check.passed else "FAIL"
        lines.append(f"{check.name:{width}}  {figure}  {relation} {bound}  {verdict:6}  {check.worst}")
    return "\n".join(lines)
