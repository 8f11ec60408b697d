"""Convergence of the trust region from a random start, by truncated CG and by the exact step."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..common.errors import UserError
from ..common.files import replacing
from .polar import Subproblem
from .problems import class_means_of_condition
from .procrustes import nearest_etf


class PictureError(UserError):
    """A picture file whose suffix is not a format of matplotlib."""


def convergence(d: int, K: int, seed: int = 0) -> dict[Subproblem, list[tuple[float, float]]]:
    """(certificate gap, gradient norm) per accepted iteration from a random start, for A of unit norm.

    Examples
    --------
    >>> curves = convergence(8, 3)
    >>> {subproblem: curve[-1][1] < 1e-10 for subproblem, curve in curves.items()}
    {'truncated-cg': True, 'exact': True}
    """
    curves: dict[Subproblem, list[tuple[float, float]]] = {}
    H = class_means_of_condition(d, K, 10.0, np.random.default_rng(seed))
    subproblems: tuple[Subproblem, ...] = ("truncated-cg", "exact")
    for subproblem in subproblems:
        solution = nearest_etf(
            H, formulation="paper" if d >= K else "gauge-free", subproblem=subproblem, initial="random"
        )
        scale = float(np.linalg.norm(solution.linear_term))
        best = float(solution.singular_values.sum()) / scale
        curve = [(best + step.cost, step.gradient_norm) for step in solution.history if step.accepted]
        curves[subproblem] = [*curve, (solution.optimality_gap / scale, solution.gradient_norm / scale)]
    return curves


def picture_format(path: Path) -> str:
    """The format of a picture from its suffix, as matplotlib names it.

    Raises
    ------
    PictureError
        If matplotlib does not write this format.
    """
    from matplotlib.figure import Figure

    known, suffix = Figure().canvas.get_supported_filetypes(), path.suffix.removeprefix(".").lower()
    if suffix not in known:
        raise PictureError(f"{path} ends in {path.suffix!r}; expected a picture, one of {', '.join(sorted(known))}")
    return suffix


def plot_convergence(path: Path, d: int, K: int) -> None:
    """Draw certificate gap and gradient norm per iteration; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    for (subproblem, curve), marker in zip(convergence(d, K).items(), ("o", "s"), strict=True):
        gaps, norms = np.array(curve).T
        axes[0].semilogy(np.maximum(gaps, 1e-17), marker=marker, label=subproblem)
        axes[1].semilogy(norms, marker=marker, label=subproblem)
    axes[0].set(xlabel="outer iteration", ylabel="certificate gap  ‖A‖_* − ⟨U, A⟩,  ‖A‖_F = 1")
    axes[1].set(xlabel="outer iteration", ylabel="Riemannian gradient norm")
    axes[1].legend(title="subproblem")
    figure.suptitle(f"Trust region from a random start, d = {d}, K = {K}, κ = 10")
    with replacing(path) as file:
        figure.savefig(file, format=picture_format(path), dpi=150)
