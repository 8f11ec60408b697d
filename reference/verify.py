"""The numerical verification: a table of claims, each measured on a bank of problems.

Every claim is checked against something that does not share its formula: the gradient of (P′) against the paper's
own objective, the trust region against singular values and SciPy, the closed-form derivative against the dense
declarative one and against finite differences.
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
    """The outcome of a claim: its worst figure, and the problem that gave it."""

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
        In the order of `CLAIMS`; a claim that applies to none of the problems is left out.

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
            except ValueError:  # one function refuses what another returned: a failure too
                figure = np.nan
            if figure is not None:
                figures[claim.name].append((figure, problem.name))
    return [_check(claim, figures[claim.name]) for claim in CLAIMS if figures[claim.name]]


def _check(claim: Claim, figures: list[tuple[float, str]]) -> Check:
    badness = [-f if claim.at_least else f for f, _ in figures]
    figure, worst = figures[int(np.argmax(np.where(np.isnan(badness), np.inf, badness)))]
    passed = figure >= claim.bound if claim.at_least else figure <= claim.bound
    return Check(claim.name, figure, claim.bound, claim.at_least, bool(passed), len(figures), worst)


def table(checks: list[Check]) -> str:
    """The checks as lines of text: name, worst figure, bound, verdict, and where the worst was."""
    width = max(len(check.name) for check in checks)
    lines = [f"{'check':{width}}  {'worst':>9}    {'bound':>7}  result  worst at"]
    for check in checks:
        relation = "≥" if check.at_least else "≤"
        figure = f"{check.figure:9.2f}" if check.at_least else f"{check.figure:9.1e}"
        bound = f"{check.bound:7.2f}" if check.at_least else f"{check.bound:7.0e}"
        verdict = "pass" if check.passed else "FAIL"
        lines.append(f"{check.name:{width}}  {figure}  {relation} {bound}  {verdict:6}  {check.worst}")
    return "\n".join(lines)
