"""The tight-frame head: the tight frame nearest to the running class means, for any number of classes.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248 (the ETF); Tropp, Dhillon, Heath & Strohmer 2005 (the frame).
"""

from __future__ import annotations

from torch import Tensor

from ..class_means import Averaging
from ..procrustes import Solution
from ..tight_frame import (
    Norms,
    centred_over,
    check_norms,
    check_tight_problem,
    classifier_from_tight_frame,
    named_or_given_tight_frame,
    solve_tight_frame,
)
from .normalised import Temperature
from .solving import SolvingHead


class TightFrameHead(SolvingHead):
    """The tight frame nearest to the running class means, with the exact gradient of that solution.

    For K ≤ d+1 it is the simplex ETF of `ImplicitETFHead(..., formulation="gauge-free")`; for K > d+1, where
    there is none, its columns are the whitened class means, see `nearest_tight_frame`.

    Parameters
    ----------
    num_features, num_classes : int
        d ≥ 1 and K ≥ 2, of any size.
    temperature
        As for `NormalisedHead`.
    delta : float
        δ, the weight of the proximal term towards the previous step's solution, which stabilises weak directions.
    norms : {"unit", "tight", "equal"}
        The norms of the rows of W, as in `classifier_from_tight_frame`.
    gradient : bool
        Whether gradients flow through the solution W. The bias `b = −W μ` passes the gradient of μ in any case.
    method : str
        As in `nearest_tight_frame`.
    initial : {"canonical", "random"} or (d, K)
        The frame before the first step, which has no proximal term; "random" is one fixed Haar frame.
    averaging : {"step", "class"}
        How the class means are averaged, as for `ClassMeans`.

    Attributes
    ----------
    frame : (d, K) buffer
        F, the last step's solution and the next one's proximal point.
    warm_start : (r, r) or None
        As for `ImplicitETFHead`; not part of the `state_dict`.

    Raises
    ------
    ValueError
        If a size or an option is invalid, or `norms="equal"` is impossible for d and K.

    Notes
    -----
    As for `ImplicitETFHead`. For K > d+1 class means are centred over the classes that have been seen. Other classes
    contribute zero: their initial columns decay with the steps, and once these are shorter than √eps, their rows of W
    are zero.

    Examples
    --------
    >>> import torch
    >>> head = TightFrameHead(num_features=3, num_classes=10)
    >>> logits = head(torch.randn(20, 3, requires_grad=True), torch.arange(20) % 10)
    >>> logits.shape, head.weight.norm(dim=1).allclose(torch.ones(10))
    (torch.Size([20, 10]), True)
    >>> (head.frame @ head.frame.T).allclose(torch.eye(3), atol=1e-5)
    True
    """

    kind = "tight-frame"

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        temperature: Temperature = None,
        *,
        delta: float = 1e-3,
        norms: Norms = "unit",
        gradient: bool = True,
        method: str = "auto",
        initial: str | Tensor = "canonical",
        averaging: Averaging = "step",
    ) -> None:
        frame = named_or_given_tight_frame(initial, num_features, num_classes)
        check_tight_problem(frame, None, None, delta, method)
        settings = {"delta": delta, "tight": float(norms == "tight"), "equal": float(norms == "equal")}
        weight = classifier_from_tight_frame(frame, norms)
        super().__init__(
            num_features, num_classes, temperature, averaging, None, settings, frame, weight, delta, gradient, method
        )
        self.norms = norms

    def solve(self, H: Tensor, proximal: Tensor | None, method: str, basis: Tensor | None) -> Solution:
        """The tight frame nearest to class means H (d, K)."""
        d, K = H.shape
        if d + 1 < K:
            H = centred_over(H, (H.detach() != 0).any(0))
        return solve_tight_frame(H, proximal, self.delta, method=method, initial=self.frame, basis=basis)

    def classifier_of(self, frame: Tensor) -> Tensor:
        """W (K, d), with rows of the chosen norms."""
        return classifier_from_tight_frame(frame, self.norms)

    def check_num_classes(self, num_classes: int) -> None:
        """Refuse sizes for which equal norms are impossible."""
        check_norms(self.norms, self.num_features, num_classes)

    def extra_repr(self) -> str:
        problem = f"delta={self.delta}, norms={self.norms!r}, gradient={self.gradient}, method={self.method!r}"
        return f"{super().extra_repr()}, {problem}"
