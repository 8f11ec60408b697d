"""The implicit head: the simplex ETF nearest to the running class means, with the exact gradient of that solution."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..class_means import Averaging, keep_single, only_finite, store
from ..methods.autograd import polar
from ..methods.warm import SMALLEST_FOR_WARM_START
from ..procrustes import Formulation, Solution, check_problem, named_or_given_frame, solve
from ..simplex import classifier_from_frame
from .averaging import AveragingHead
from .normalised import Temperature


class ImplicitETFHead(AveragingHead):
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
        Of the running means, as for `ClassMeans`.

    Attributes
    ----------
    frame : (d, K) buffer
        U, the last step's solution and the next one's proximal point.
    warm_start : (m, m) or None
        A cache that makes the next step quicker, not part of the `state_dict`: a step that has it and one that has not
        differ in the last bits. A checkpoint that resumes to the same bits stores it beside the state.

    Notes
    -----
    A training batch updates the running means, which are divided by their Frobenius norm; the gradient flows through
    that normalisation, through the batch term of H and of μ. Class means that differ by rounding only count as equal:
    the frame stays, without gradient. Buffers hold all state. On accelerators nothing makes the host wait after the
    first step. A problem there that products in float32 cannot solve is decided on the device: the last frame stands
    for that step, without gradient; `fallbacks` counts it, and `solution_health` warns of it.

    Examples
    --------
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
        settings = {"delta": delta, "gauge-free": float(formulation == "gauge-free")}
        super().__init__(num_features, num_classes, temperature, averaging, formulation, settings)
        frame = named_or_given_frame(initial, num_features, num_classes)
        check_problem(frame, None, None, delta, method, formulation)
        self.delta, self.formulation, self.gradient, self.method = delta, formulation, gradient, method
        self.frame: Tensor
        self.fallbacks: Tensor
        self.register_buffer("frame", frame)
        self.register_buffer("weight", classifier_from_frame(frame).to(torch.get_default_dtype()).contiguous())
        self.register_buffer("bias", torch.zeros(num_classes))
        self.register_buffer("fallbacks", torch.zeros((), dtype=torch.int64))
        self.warm_start: Tensor | None = None
        self._first = True  # what `running.steps == 0` says, without making the host of a GPU wait for it
        self._last: tuple[Solution, Tensor, str] | None = None  # of the last step, with the drift and the method
        self.register_load_state_dict_pre_hook(_drop_stored_basis)
        self.register_load_state_dict_post_hook(ImplicitETFHead._after_load)

    def follow(self, sums: Tensor, counts: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        """Move the class means by this batch, and solve for the simplex ETF nearest to them."""
        H, global_mean = self.running.average(sums, counts, update)
        classifier = self._solve(H if self.gradient else H.detach(), global_mean, update)
        self._first = self._first and not update
        return classifier

    @torch.no_grad()
    def refresh(self) -> None:
        """Solve again from the running means: after they were averaged over models or changed by hand, say."""
        self._solve(self.running.class_means, self.running.global_mean, update=True)
        self._first = bool(self.running.steps == 0)

    def extra_repr(self) -> str:
        problem = (
            f"delta={self.delta}, formulation={self.formulation!r}, gradient={self.gradient}, method={self.method!r}"
        )
        return f"{super().extra_repr()}, {problem}"

    def solution_health(self) -> dict[str, float]:
        """How exact the last step's solution was, and what it cost; NaN before the first one.

        For logs: it costs an SVD, and one more solution.

        Returns
        -------
        dict
            `gap`, the certificate `1 − ⟨X, A⟩/‖A‖_*`; `sigma_max`, `sigma_min` and their ratio `condition`, of A;
            `orthogonality`, `‖XᵀX − I‖_F`; `drift`, how far the frame moved in that step, `‖U − U₀‖_F/√K`;
            `fallbacks`, the number of steps so far in which a safer method had to step in; and `milliseconds` of
            solving the same problem once more, by the same method, and differentiating it.
        """
        names = ("gap", "sigma_max", "sigma_min", "condition", "orthogonality", "drift", "fallbacks", "milliseconds")
        if self._last is None:
            return dict.fromkeys(names, math.nan)
        solution, drift, method = self._last
        A, sigma = solution.linear_term, solution.singular_values
        values = (
            1 - solution.value / float(sigma.sum()),
            float(sigma[0]),
            float(sigma[-1]),
            float(sigma[0] / sigma[-1]),
            solution.orthogonality,
            float(drift),
            float(self.fallbacks),
            self._milliseconds(A, solution.variable, method),
        )
        health = dict(zip(names, values, strict=True))
        if health["fallbacks"] > 0 and A.device.type != "cpu" and method in ("auto", "matmul"):  # else said at the time
            warnings.warn(
                f"in {int(health['fallbacks'])} steps so far the class means were beyond products in {A.dtype}, and "
                "the last frame was kept. Class means coincide or are missing; if that lasts, a larger delta helps.",
                RuntimeWarning,
                stacklevel=2,
            )
        return health

    def _milliseconds(self, A: Tensor, X: Tensor, method: str) -> float:
        times = []
        with torch.enable_grad():
            for _ in range(2):  # the first call wakes threads up
                A = A.detach().requires_grad_()
                began = time.perf_counter()
                frame = polar(A, X, method, self.warm_start).frame
                float(torch.autograd.grad(frame, A, X)[0][0, 0])  # an accelerator has finished when this is known
                times.append(time.perf_counter() - began)
        return 1e3 * times[-1]

    def _solve(self, H: Tensor, global_mean: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        """W and b for class means H (d, K)."""
        unpinned = self._first or (self.formulation == "paper" and self.delta == 0)  # rank deficiency is the rule
        method = "svd" if unpinned and self.method == "auto" else self.method
        solution = solve(
            H / self._norm(H),
            None if self._first else self.frame,
            self.delta,
            method=method,
            formulation=self.formulation,
            initial=self.frame,
            basis=None if self._first else self.warm_start,
        )
        frame = solution.frame
        if self.method == "matmul" or frame.device.type != "cpu":  # NaN is what products could not solve
            frame = torch.where(frame.isnan(), self.frame, frame)
        weight = classifier_from_frame(frame)
        bias = -weight @ global_mean
        if update:
            drift = torch.dist(frame.detach(), self.frame) / self.num_classes**0.5
            self._last = solution._replace(frame=frame.detach()), drift, method
            fallbacks = self.fallbacks + solution.fallbacks
            values = {"frame": frame, "weight": weight, "bias": bias, "fallbacks": fallbacks}
            store(self, **only_finite(self, values, frame, bias))
            large = len(solution.linear_term.mT) >= SMALLEST_FOR_WARM_START and frame.dtype == torch.float32
            self.warm_start = solution.basis if large and not unpinned else None
        return weight, bias

    def _norm(self, H: Tensor) -> Tensor:
        """`‖H‖_F`, or infinity where the means differ by no more than the rounding of features of norm τ."""
        norm = torch.linalg.vector_norm(H)
        rounding = 16 * torch.finfo(H.dtype).eps * self.num_classes**0.5  # of features of norm 1
        return torch.where(norm.detach() > rounding * self._tau(), norm, torch.inf)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ImplicitETFHead:
        """`.to(bfloat16)` and `.half()` leave the frame in float32: it is what the next step starts from."""
        super()._apply(fn, recurse)
        keep_single(self, "frame")
        self.warm_start = None
        return self

    def _after_load(self, _: object) -> None:
        self._first, self._last, self.warm_start = bool(self.running.steps == 0), None, None


def _drop_stored_basis(_: object, state_dict: dict[str, Any], prefix: str, *__: Any) -> None:
    """Version 0.1.0 kept the warm start in the state."""
    state_dict.pop(f"{prefix}basis", None)
