"""The base of the implicit and the tight-frame head, whose classifier is the frame nearest to the class means."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ...common.arguments import real_number, switch
from ..class_means import Averaging, keep_integer, keep_single, only_finite, store
from ..methods.autograd import polar
from ..methods.linalg import frobenius
from ..methods.warm import SMALLEST_FOR_WARM_START
from ..procrustes import Formulation, Solution
from .averaging import AveragingHead
from .growing import extended_frame
from .normalised import Temperature


class SolvingHead(AveragingHead):
    """A head that solves for a frame in every training step, with the previous one as proximal point.

    Parameters
    ----------
    frame : (d, K), weight : (K, d)
        Before the first step.
    delta, gradient, method
        As in `ImplicitETFHead`.
    others
        As in `AveragingHead`.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        temperature: Temperature,
        averaging: Averaging,
        formulation: Formulation | None,
        settings: dict[str, float],
        frame: Tensor,
        weight: Tensor,
        delta: float,
        gradient: bool,
        method: str,
    ) -> None:
        super().__init__(num_features, num_classes, temperature, averaging, formulation, settings)
        self.delta, self.gradient, self.method = real_number("delta", delta), switch("gradient", gradient), method
        self.frame: Tensor
        self.fallbacks: Tensor
        self.register_buffer("frame", frame)
        self.register_buffer("weight", weight.to(torch.get_default_dtype()).contiguous())
        self.register_buffer("bias", torch.zeros(num_classes))
        self.register_buffer("fallbacks", torch.zeros((), dtype=torch.int64))
        self.warm_start: Tensor | None = None
        self._first = True  # equals `running.steps == 0`, without synchronising
        self._steps = self.running.steps  # the tensor to which `_first` belongs
        self._last: tuple[Solution, Tensor, str] | None = None  # solution, drift and method of the last step
        self.register_load_state_dict_post_hook(SolvingHead._after_load)

    def solve(self, H: Tensor, proximal: Tensor | None, method: str, basis: Tensor | None) -> Solution:
        """The frame nearest to class means H (d, K), with a proximal frame, or else from the start `self.frame`."""
        raise NotImplementedError

    def classifier_of(self, frame: Tensor) -> Tensor:
        """W (K, d) of a frame (d, K)."""
        raise NotImplementedError

    def mostly_deficient(self) -> bool:
        """Whether most problems are rank-deficient, so that "auto" uses the SVD at once."""
        return self._first

    def follow(self, sums: Tensor, counts: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        """Update the class means with this batch, and solve for the frame nearest to them."""
        self._detect_new_state()
        H, global_mean = self.running.average(sums, counts, update)
        classifier = self._solve(H if self.gradient else H.detach(), global_mean, update)
        if update:
            self._first, self._steps = False, self.running.steps
        return classifier

    @torch.no_grad()
    def refresh(self) -> None:
        """Solve again from the running means, for example after averaging them over models."""
        if self._steps is not self.running.steps:
            self._detect_new_state()
        self._solve(self.running.class_means, self.running.global_mean, update=True)
        self._first = bool(self.running.steps == 0)

    def grow(self, n: int) -> None:
        """Extend the frame, the proximal point of the next step, and set W and b from it."""
        super().grow(n)
        self.frame = extended_frame(self.frame, n, self._simplex).contiguous()
        weight = self._with_pinned(self.classifier_of(self.frame))
        store(self, weight=weight, bias=-weight @ self.running.global_mean.to(weight.dtype))
        self.warm_start, self._last = None, None

    def solution_health(self) -> dict[str, float]:
        """Diagnostics of the last step's solution, for logs; NaN before the first one.

        The call costs an SVD, and two more solutions with their gradients.

        Returns
        -------
        dict
            `gap`, the certificate `1 − ⟨X, A⟩/‖A‖_*`; `sigma_max`, `sigma_min` and their ratio `condition`, of A;
            `orthogonality`, `‖XᵀX − I‖_F`; `drift`, the change of the frame in that step, `‖U − U₀‖_F/√K`;
            `fallbacks`, the number of steps so far in which another method replaced the chosen one; and `milliseconds`,
            the time of solving the same problem again, by the same method, with its gradient.
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
        # Other fallbacks warn when they occur.
        if health["fallbacks"] > 0 and A.device.type != "cpu" and method in ("auto", "matmul"):
            warnings.warn(
                f"in {int(health['fallbacks'])} steps so far, products in {A.dtype} could not solve the problem: the "
                "previous frame was kept. Class means coincide or are missing: if this persists, use a larger delta.",
                RuntimeWarning,
                stacklevel=2,
            )
        return health

    def _milliseconds(self, A: Tensor, X: Tensor, method: str) -> float:
        times = []
        with torch.enable_grad():
            for _ in range(2):  # the first call includes the start of threads
                A = A.detach().requires_grad_()
                began = time.perf_counter()
                frame = polar(A, X, method, self.warm_start).frame
                float(torch.autograd.grad(frame, A, X)[0][0, 0])  # reading a value synchronises
                times.append(time.perf_counter() - began)
        return 1e3 * times[-1]

    def _solve(self, H: Tensor, global_mean: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        """W and b for class means H (d, K)."""
        deficient = self.mostly_deficient()
        method = "svd" if deficient and self.method == "auto" else self.method
        proximal, basis = (None, None) if self._first else (self.frame, self.warm_start)
        solution = self.solve(H / self._norm(H), proximal, method, basis)
        frame = solution.frame
        if self.method == "matmul" or frame.device.type != "cpu":  # NaN: products could not solve it
            frame = torch.where(frame.isnan(), self.frame, frame)
        weight = self._with_pinned(self.classifier_of(frame))
        bias = -weight @ global_mean
        if update:
            drift = frobenius(frame.detach() - self.frame) / self.num_classes**0.5
            self._last = Solution(frame.detach(), *solution[1:]), drift, method
            fallbacks = self.fallbacks + solution.fallbacks
            values = {"frame": frame, "weight": weight, "bias": bias, "fallbacks": fallbacks}
            store(self, **only_finite(self, values, frame, bias))
            large = len(solution.linear_term.mT) >= SMALLEST_FOR_WARM_START and frame.dtype == torch.float32
            self.warm_start = solution.basis if large and not deficient else None
        return weight, bias

    def _norm(self, H: Tensor) -> Tensor:
        """`‖H‖_F`, or infinity if the means differ by no more than the rounding of features of norm τ."""
        norm = frobenius(H)
        rounding = 16 * torch.finfo(H.dtype).eps * self.num_classes**0.5  # of features of norm 1
        return torch.where(norm.detach() > rounding * self._tau(), norm, torch.inf)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SolvingHead:
        """`.to(bfloat16)` and `.half()` keep the frame in float32, since the next step starts from it."""
        known = self._steps is self.running.steps
        super()._apply(fn, recurse)
        keep_single(self, "frame")
        self.warm_start = None
        if known:
            self._steps = self.running.steps
        return self

    def _detect_new_state(self) -> None:
        """Detect buffers set without `load_state_dict`, as by `from_pretrained` of Transformers.

        Before the first step, which synchronises in any case, `running.steps` is read; later, its tensor object is
        compared. A compiler cannot read the value: a new tensor object counts as that of a trained head.
        """
        steps = self.running.steps
        other = steps is not self._steps
        if not (self._first or other):
            return
        if torch.compiler.is_compiling():
            self._first = self._first and not other
        elif not steps.is_meta:
            self._first = bool(steps == 0)
        if other:
            self._steps, self._last, self.warm_start = steps, None, None
            keep_single(self, "frame")
            keep_integer(self, "fallbacks")

    def _after_load(self, _: object) -> None:
        self._steps, self._last, self.warm_start = self.running.steps, None, None
        self._first = self._steps.is_meta or bool(self._steps == 0)
