"""The implicit head: the simplex ETF nearest to the running class means, with the exact gradient of that solution.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 3.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..class_means import Averaging
from ..procrustes import Formulation, Solution, check_problem, named_or_given_frame, solve
from ..simplex import check_sizes, classifier_from_frame
from .normalised import Temperature
from .solving import SolvingHead


class ImplicitETFHead(SolvingHead):
    """The simplex ETF nearest to the running class means, with the exact gradient of that solution.

    Parameters
    ----------
    num_features, num_classes : int
        d ≥ K for the paper's formulation, d ≥ K−1 for the gauge-free one.
    temperature
        As for `NormalisedHead`.
    delta : float
        δ, the weight of the proximal term towards the previous step's solution.
    formulation : {"paper", "gauge-free"}
    gradient : bool
        Whether gradients flow through the solution W. The bias `b = −W μ` passes the gradient of μ in any case.
    method : str
        As in `nearest_etf`.
    initial : {"canonical", "random"} or (d, K)
        The frame before the first step, which has no proximal term; "random" is one fixed Haar frame.
    averaging : {"step", "class"}
        How the class means are averaged, as for `ClassMeans`.

    Attributes
    ----------
    frame : (d, K) buffer
        U, the last step's solution and the next one's proximal point.
    warm_start : (m, m) or None
        A cache that makes the next step faster, not part of the `state_dict`: steps with and without it differ in the
        last bits. For a bitwise equal resumption, a checkpoint must contain it too.

    Raises
    ------
    ValueError
        If a size or an option is invalid, or K classes do not fit into d features.

    Notes
    -----
    A training batch updates the running means, which are divided by their Frobenius norm; the gradient flows through
    this normalisation and through the batch terms of H and μ. Class means that differ only by rounding count as equal:
    then the frame does not change, and has no gradient. All state is in buffers. On accelerators, steps after the first
    do not synchronise. If matrix products in float32 cannot solve a problem there, the step uses the previous frame,
    without gradient; `fallbacks` counts such steps, and `solution_health` warns of them.

    Examples
    --------
    >>> import torch
    >>> head = ImplicitETFHead(num_features=8, num_classes=3)
    >>> logits = head(torch.randn(4, 8, requires_grad=True), torch.tensor([0, 1, 2, 0]))
    >>> (head.weight @ head.weight.T).round(decimals=3)[0].tolist()
    [1.0, -0.5, -0.5]
    """

    kind = "implicit"

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        temperature: Temperature = None,
        *,
        delta: float = 1e-3,
        formulation: Formulation = "paper",
        gradient: bool = True,
        method: str = "auto",
        initial: str | Tensor = "canonical",
        averaging: Averaging = "step",
    ) -> None:
        check_sizes(num_features, num_classes, formulation)
        frame = named_or_given_frame(initial, num_features, num_classes)
        check_problem(frame, None, None, delta, method, formulation)
        settings = {"delta": delta, "gauge-free": float(formulation == "gauge-free")}
        weight = classifier_from_frame(frame)
        super().__init__(
            num_features,
            num_classes,
            temperature,
            averaging,
            formulation,
            settings,
            frame,
            weight,
            delta,
            gradient,
            method,
        )
        self.formulation = formulation
        self.register_load_state_dict_pre_hook(_drop_stored_basis)

    def solve(self, H: Tensor, proximal: Tensor | None, method: str, basis: Tensor | None) -> Solution:
        """The simplex ETF nearest to class means H (d, K)."""
        return solve(
            H,
            proximal,
            self.delta,
            method=method,
            formulation=self.formulation,
            initial=self.frame,
            basis=basis,
        )

    def classifier_of(self, frame: Tensor) -> Tensor:
        """`W = √(K/(K−1)) M Uᵀ`."""
        return classifier_from_frame(frame)

    def mostly_deficient(self) -> bool:
        """Before the first step, and in the paper's form without proximal term, where the direction U·1 is free."""
        return self._first or (self.formulation == "paper" and self.delta == 0)

    def extra_repr(self) -> str:
        problem = (
            f"delta={self.delta}, formulation={self.formulation!r}, gradient={self.gradient}, method={self.method!r}"
        )
        return f"{super().extra_repr()}, {problem}"


def _drop_stored_basis(_: object, state_dict: dict[str, Any], prefix: str, *__: Any) -> None:
    """Remove the warm start from a state of version 0.1.0."""
    state_dict.pop(f"{prefix}basis", None)
