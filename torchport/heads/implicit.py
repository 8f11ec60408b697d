"""The implicit head: the simplex ETF nearest to the running class means, with the exact gradient of that solution."""

from __future__ import annotations

import math
import time
import warnings

import torch
from torch import Tensor

from ..class_means import ClassMeans, store
from ..methods.autograd import polar
from ..methods.warm import SMALLEST_FOR_WARM_START
from ..procrustes import Formulation, Solution, check_problem, initial_frame_named, solve
from ..simplex import check_frame, check_sizes, classifier_from_frame
from .base import Head


class ImplicitETFHead(Head):
    """The simplex ETF nearest to the running class means, with the exact gradient of that solution.

    Parameters
    ----------
    num_features, num_classes : int
        d ≥ K for the paper's formulation, d ≥ K−1 for the gauge-free one.
    temperature : float
        τ, which multiplies the unit features.
    delta : float
        δ, the weight of the proximal term towards the previous step's solution.
    formulation : {"paper", "gauge-free"}
    gradient : bool
        Whether gradients flow through the solution W. The bias `b = −W μ` passes the gradient of μ in any case.
    method : str
        As in `nearest_etf`.
    initial : {"canonical", "random"} or (d, K)
        The frame before the first step, which has no proximal term; "random" is one fixed Haar frame.

    Notes
    -----
    A training batch updates the running means, which are divided by their Frobenius norm; the gradient flows through
    that normalisation, through the batch term of H and of μ. Buffers hold all state, so a `state_dict` resumes
    exactly. On accelerators nothing makes the host wait after the first step. A problem there that products in float32
    cannot solve is decided on the device: the last frame stands for that step, without gradient; `fallbacks` counts
    it, and `solution_health` warns of it.

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
        temperature: float = 5.0,
        *,
        delta: float = 1e-3,
        formulation: Formulation = "paper",
        gradient: bool = True,
        method: str = "auto",
        initial: str | Tensor = "canonical",
    ) -> None:
        super().__init__(num_features, num_classes, temperature)
        check_sizes(num_features, num_classes, formulation)
        if isinstance(initial, str):
            if initial not in ("canonical", "random"):
                raise ValueError(
                    f"initial = {initial!r}; expected 'canonical', 'random' or a frame (d, K): a head has no class "
                    "means yet that another start could come from."
                )
            initial = initial_frame_named(initial, torch.zeros(num_features, num_classes))
        check_frame("initial", initial, (num_features, num_classes))
        check_problem(initial, None, None, delta, method, formulation)
        self.delta, self.formulation, self.gradient, self.method = delta, formulation, gradient, method
        self.running = ClassMeans(num_features, num_classes)
        m = num_classes if formulation == "paper" else num_classes - 1
        unpinned = formulation == "paper" and delta == 0  # solved by singular values, with the gauge completed
        warm = m >= SMALLEST_FOR_WARM_START and method in ("auto", "eigh") and not unpinned
        self.frame: Tensor
        self.basis: Tensor
        self.fallbacks: Tensor
        self.register_buffer("frame", initial.clone())
        self.register_buffer("basis", torch.eye(m if warm else 0))
        self.register_buffer("weight", classifier_from_frame(initial))
        self.register_buffer("bias", torch.zeros(num_classes))
        self.register_buffer("fallbacks", torch.zeros((), dtype=torch.int64))
        self._first = True  # what `running.steps == 0` says, without making the host of a GPU wait for it
        self.register_load_state_dict_post_hook(ImplicitETFHead._after_load)
        self._last: tuple[Solution, Tensor, str] | None = None  # of the last step, with the drift and the method

    def classifier_for(self, h: Tensor, labels: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        """Move the class means by this batch, and solve for the simplex ETF nearest to them."""
        H, global_mean = self.running(h, labels, update)
        classifier = self._solve(H if self.gradient else H.detach(), global_mean, update)
        self._first = self._first and not update
        return classifier

    @torch.no_grad()
    def set_means(
        self, class_mean_rows: Tensor, counts: Tensor | None = None, global_mean: Tensor | None = None
    ) -> None:
        """Set the running means from a pass over a data set, and solve for W and b; averaging goes on from there.

        Parameters
        ----------
        class_mean_rows : (K, d)
            Means per class of `normalise(features)`, not centred; rows are classes.
        counts : (K,), optional
            Samples of each class; default: every class was seen, equally often.
        global_mean : (d,), optional
            Default: the mean of the class means, weighted by the counts.

        Raises
        ------
        ValueError
            If a shape is wrong (a transposed matrix included) or an entry is not finite. Nothing is changed then.
        """
        self.running.set_means(class_mean_rows, counts, global_mean)
        self.refresh()

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
                frame = polar(A, X, method, self.basis if len(self.basis) == len(A.mT) else None).frame
                float(torch.autograd.grad(frame, A, X)[0][0, 0])  # an accelerator has finished when this is known
                times.append(time.perf_counter() - began)
        return 1e3 * times[-1]

    def _solve(self, H: Tensor, global_mean: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        """W and b for class means H (d, K)."""
        norm = torch.linalg.vector_norm(H).clamp(min=torch.finfo(H.dtype).tiny)
        warm = self.basis.numel() > 0 and not self._first
        unpinned = self._first or (self.formulation == "paper" and self.delta == 0)  # rank deficiency is the rule
        method = "svd" if unpinned and self.method == "auto" else self.method
        solution = solve(
            H / norm,
            None if self._first else self.frame,
            self.delta,
            method=method,
            formulation=self.formulation,
            initial=self.frame,
            basis=self.basis if warm else None,
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
            store(self, frame=frame, weight=weight, bias=bias, fallbacks=fallbacks)
            if warm and solution.basis is not None:
                store(self, basis=solution.basis)
        return weight, bias

    def _after_load(self, _: object) -> None:
        self._first, self._last = bool(self.running.steps == 0), None
