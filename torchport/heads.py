"""The three classifier heads, and a backbone with one of them on top.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 4. All three see features `h = τ f/‖f‖`:

* learned: `logits = W h`, rows of W re-normalised after every optimiser step;
* fixed: W is the canonical simplex ETF, `b = −W μ` with the global mean μ;
* implicit: W is the simplex ETF nearest to the running class means, differentiated through.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .class_means import ClassMeans, check_batch
from .nearest_etf import Formulation, Solution, solve
from .simplex import canonical_frame, check_sizes, classifier_from_frame


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
        """`h = τ f/‖f‖`, (N, d): what the classifier and the collapse metrics are about."""
        return self.temperature * F.normalize(features, dim=1)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (N, K) of features (N, d). Labels (N,) are asked for by heads that learn from class means."""
        check_batch(features, labels, self.num_features, self.num_classes)
        h = self.normalise(features)
        weight, bias = self.weight, self.bias
        if self.training and labels is not None:
            weight, bias = self.update(h, labels)
        return F.linear(h, weight.to(h.dtype), bias.to(h.dtype))

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
        with torch.no_grad():
            self.bias.copy_(-self.weight @ self.means.global_mean)
        return self.weight, -self.weight @ h.mean(0).to(self.weight.dtype)


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
    exactly.

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
        self.delta, self.formulation, self.gradient, self.method = delta, formulation, gradient, method
        if isinstance(initial, str):
            if initial != "canonical":
                raise ValueError(f"initial = {initial!r}; expected 'canonical' or a frame (d, K).")
            initial = canonical_frame(num_features, num_classes)
        self.means = ClassMeans(num_features, num_classes)
        self.frame: Tensor
        self.register_buffer("frame", initial.clone())
        self.register_buffer("weight", classifier_from_frame(initial))
        self.register_buffer("bias", torch.zeros(num_classes))
        self._last: Solution | None = None

    def update(self, h: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        first = int(self.means.steps) == 0
        H, global_mean = self.means(h, labels)
        solution = self._solve(H if self.gradient else H.detach(), first)
        return self._keep(solution, global_mean)

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
        self._keep(self._solve(self.means.centred, first=False), self.means.global_mean)

    def solution_health(self) -> dict[str, float]:
        """How exact the last solution was: certificate, condition number, orthogonality. For logs: it costs an SVD."""
        if self._last is None:
            return {"gap": 0.0, "condition": 1.0, "orthogonality": 0.0, "fallbacks": 0.0}
        A, X = self._last.linear_term.double(), self._last.variable.double()
        sigma = torch.linalg.svdvals(A)
        eye = torch.eye(X.shape[1], dtype=X.dtype, device=X.device)
        return {
            "gap": float((sigma.sum() - (A * X).sum()) / sigma.sum()),
            "condition": float(sigma[0] / sigma[-1]),
            "orthogonality": float(torch.linalg.norm(X.T @ X - eye)),
            "fallbacks": 0.0,
        }

    def _solve(self, H: Tensor, first: bool) -> Solution:
        norm = torch.linalg.vector_norm(H).clamp(min=torch.finfo(H.dtype).tiny)
        return solve(
            H / norm,
            None if first else self.frame.clone(),
            self.delta,
            method=self.method,
            formulation=self.formulation,
            initial=self.frame.clone(),
        )

    def _keep(self, solution: Solution, global_mean: Tensor) -> tuple[Tensor, Tensor]:
        weight = classifier_from_frame(solution.frame)
        bias = -weight @ global_mean
        with torch.no_grad():
            self.frame.copy_(solution.frame)
            self.weight.copy_(weight)
            self.bias.copy_(bias)
        self._last = Solution(*(part.detach() for part in solution))
        return weight, bias


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
