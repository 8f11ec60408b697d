"""The three classifier heads, and a backbone with one of them on top.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 4. All three see features `h = τ f/‖f‖`:

* learned: `logits = W h`, rows of W re-normalised after every optimiser step;
* fixed: W is the canonical simplex ETF, `b = −W μ` with the global mean μ;
* implicit: W is the simplex ETF nearest to the running class means, differentiated through.
"""

from __future__ import annotations

import math
import time
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .class_means import ClassMeans, check_batch, store
from .distributed import all_reduce_sum
from .implicit import polar
from .procrustes import Formulation, check_problem, solve, without_autocast
from .polar import SMALLEST_FOR_WARM_START
from .simplex import canonical_frame, check_frame, check_sizes, classifier_from_frame


class Head(nn.Module):
    """What the heads share: `weight` (K, d) and `bias` (K,) are the classifier in force."""

    kind: str
    weight: Tensor
    bias: Tensor

    def __init__(self, num_features: int, num_classes: int, temperature: float = 5.0) -> None:
        super().__init__()
        check_sizes(num_features, num_classes, "gauge-free")
        if not temperature > 0:
            raise ValueError(f"temperature = {temperature}; expected a positive number.")
        self.num_features, self.num_classes, self.temperature = num_features, num_classes, temperature

    def normalise(self, features: Tensor) -> Tensor:
        """`h = τ f/‖f‖`, (N, d), in float32 at least: what the classifier and the collapse metrics are about."""
        f = features.to(torch.promote_types(features.dtype, torch.float32))
        return self.temperature * F.normalize(f, dim=1)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (N, K) of features (N, d), in their dtype.

        In training, give the labels (N,): the ETF heads bring their class means up to date with them. Without labels,
        and in eval mode, the stored classifier is used.

        Raises
        ------
        ValueError
            If shapes do not fit, and on the CPU if a label lies outside 0…K−1 or a feature is not finite. On other
            devices that look would make the host wait: there NaN propagates to the logits.
        """
        check_batch(features, labels, self.num_features, self.num_classes)
        h = self.normalise(features)
        weight, bias = self.weight, self.bias
        if self.training and labels is not None:
            with without_autocast(h.device):
                weight, bias = self.update(h, labels)
        return F.linear(h, weight.to(h.dtype), bias.to(h.dtype)).to(features.dtype)

    def update(self, h: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The classifier for this training batch, with gradient; what is stored is brought up to date."""
        return self.weight, self.bias

    def after_step(self) -> None:
        """To be called after every optimiser step."""

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, num_classes={self.num_classes}, temperature={self.temperature}"


class LearnedHead(Head):
    """A learned linear classifier with unit rows and no bias: the usual baseline.

    Examples
    --------
    >>> head = LearnedHead(num_features=8, num_classes=3)
    >>> head(torch.randn(4, 8)).shape
    torch.Size([4, 3])
    """

    kind = "learned"

    def __init__(self, num_features: int, num_classes: int, temperature: float = 5.0) -> None:
        super().__init__(num_features, num_classes, temperature)
        self.weight = nn.Parameter(F.normalize(torch.randn(num_classes, num_features), dim=1))
        self.register_buffer("bias", torch.zeros(num_classes))

    @torch.no_grad()
    def after_step(self) -> None:
        """Re-normalise the rows."""
        self.weight.copy_(F.normalize(self.weight, dim=1))


class FixedETFHead(Head):
    """The canonical simplex ETF, never changed, and `b = −W μ`: the batch's mean in training, a running one stored.

    Examples
    --------
    >>> head = FixedETFHead(num_features=8, num_classes=3)
    >>> head(torch.randn(4, 8), torch.tensor([0, 1, 2, 0])).shape
    torch.Size([4, 3])
    """

    kind = "fixed"

    def __init__(self, num_features: int, num_classes: int, temperature: float = 5.0) -> None:
        super().__init__(num_features, num_classes, temperature)
        self.means = ClassMeans(num_features, num_classes)
        self.register_buffer("weight", classifier_from_frame(canonical_frame(num_features, num_classes)))
        self.register_buffer("bias", torch.zeros(num_classes))

    def update(self, h: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.means(h, labels)
        weight = self.weight.to(self.means.global_mean.dtype)
        store(self, bias=-weight @ self.means.global_mean)
        total = all_reduce_sum(torch.cat([h.sum(0), h.new_tensor([len(h)])]))  # over all processes
        batch_mean = total[:-1] / total[-1].detach()
        return weight, -weight @ batch_mean.to(weight.dtype)


class ImplicitETFHead(Head):
    """The simplex ETF nearest to the running class means, with the exact gradient of that solution.

    Parameters
    ----------
    num_features, num_classes : int
        d ≥ K for the paper's formulation, d ≥ K−1 for the gauge-free one.
    temperature : float
        τ.
    delta : float
        δ, the weight of the proximal term towards the previous step's solution.
    formulation : {"paper", "gauge-free"}
    gradient : bool
        Whether gradients flow through the solution W. The bias `b = −W μ` passes the gradient of μ in any case.
    method : str
        As in `nearest_etf`.
    initial : "canonical" or (d, K)
        The start of the first step, which has no proximal term.

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
            if initial != "canonical":
                raise ValueError(f"initial = {initial!r}; expected 'canonical' or a frame (d, K).")
            initial = canonical_frame(num_features, num_classes)
        check_frame("initial", initial, (num_features, num_classes))
        check_problem(initial, None, None, delta, method, formulation)
        self.delta, self.formulation, self.gradient, self.method = delta, formulation, gradient, method
        self.means = ClassMeans(num_features, num_classes)
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
        self._first = True  # what `means.steps == 0` says, without making the host of a GPU wait for it
        self.register_load_state_dict_post_hook(ImplicitETFHead._after_load)
        self._last: tuple[Tensor, Tensor, Tensor, str] | None = None  # A, X, the drift and the method

    def update(self, h: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Move the class means by this batch, and solve for the simplex ETF nearest to them."""
        H, global_mean = self.means(h, labels)
        classifier = self._solve(H if self.gradient else H.detach(), global_mean)
        self._first = False
        return classifier

    @torch.no_grad()
    def recalibrate(self, class_means: Tensor, global_mean: Tensor | None = None) -> None:
        """Set W and b from a full pass over a data set.

        Parameters
        ----------
        class_means : (K, d)
            Means per class of `normalise(features)`, not centred.
        global_mean : (d,), optional
            Default: the mean of the class means.
        """
        self.means.set(class_means, global_mean)
        self._solve(self.means.means, self.means.global_mean)

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
        A, X, drift, method = self._last
        sigma = torch.linalg.svdvals(A.double())
        eye = torch.eye(X.shape[1], dtype=torch.float64, device=X.device)
        values = (
            1 - (A * X).double().sum() / sigma.sum(),
            sigma[0],
            sigma[-1],
            sigma[0] / sigma[-1],
            torch.linalg.norm(X.double().mT @ X.double() - eye),
            drift,
            self.fallbacks,
            self._milliseconds(A, X, method),
        )
        health = {name: float(value) for name, value in zip(names, values, strict=True)}
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

    def _solve(self, H: Tensor, global_mean: Tensor) -> tuple[Tensor, Tensor]:
        """W and b for class means H (d, K), which are also stored."""
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
        fallbacks = self.fallbacks + solution.polar.fallbacks
        drift = torch.dist(frame.detach(), self.frame) / self.num_classes**0.5
        store(self, frame=frame, weight=weight, bias=bias, fallbacks=fallbacks)
        if warm:
            store(self, basis=solution.polar.basis)
        self._last = solution.linear_term.detach(), solution.polar.frame.detach(), drift, method
        return weight, bias

    def _after_load(self, _: object) -> None:
        self._first, self._last = bool(self.means.steps == 0), None


class Classifier(nn.Module):
    """A backbone that maps images to features (N, d), and a head on top.

    Examples
    --------
    >>> model = Classifier(nn.Flatten(), FixedETFHead(12, 4))
    >>> model(torch.randn(2, 3, 2, 2)).shape
    torch.Size([2, 4])
    """

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        return self.head(self.backbone(images), labels)
