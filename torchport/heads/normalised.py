"""The base of the heads with normalised features: divided by their length and multiplied by a temperature."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ...common.arguments import real_number
from ..arguments import sees_values
from .base import Head
from .fitting import means_of_classes
from .temperature import LARGEST_LEARNED, default_temperature, warn_of_unreachable_loss

SHORTEST = 1e-12  # lower bound of the length that divides a row, as in torch's `normalize`
Temperature = float | Literal["learned"] | None


class NormalisedHead(Head):
    """A head whose features are `h = τ f/‖f‖`.

    Parameters
    ----------
    num_features, num_classes : int
    temperature : float, "learned" or None
        τ, the factor of the unit features: larger values allow more confident probabilities. None: the default for K
        classes, see `default_temperature`; the paper's is 5. "learned": its logarithm is a parameter, which starts at
        the default, with τ ≤ 100.
    settings : dict of float
        Further settings, which the state contains; loading a state with other values warns.
    """

    def __init__(
        self, num_features: int, num_classes: int, temperature: Temperature, settings: dict[str, float] | None = None
    ) -> None:
        super().__init__(num_features, num_classes)
        learned = temperature == "learned"
        start = default_temperature(num_classes) if temperature is None or learned else temperature
        self._temperature = real_number("temperature", start, positive=True)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(self._temperature))) if learned else None
        if not learned:
            warn_of_unreachable_loss(self._temperature, num_classes)
        self._settings = {"temperature": 0.0 if learned else self._temperature, **(settings or {})}  # 0: learned
        self.made_with: Tensor
        self.register_buffer("made_with", torch.tensor(list(self._settings.values()), dtype=torch.float32))
        self.register_load_state_dict_pre_hook(_warn_of_other_settings)

    @property
    def temperature(self) -> float:
        """τ; if it is learned, its present value."""
        if self.log_temperature is None:
            return self._temperature
        with torch.no_grad():
            return float(self._tau())

    def _tau(self) -> Tensor | float:
        if self.log_temperature is None:
            return self._temperature
        return self.log_temperature.clamp(max=math.log(LARGEST_LEARNED)).exp()

    def normalise(self, features: Tensor) -> Tensor:
        """`h = τ f/‖f‖`, (N, d), in float32 at least: the input of the classifier and of the collapse metrics.

        A row of zeros stays zero. If compiled, exported or on an accelerator, where lengths are not checked, a row
        shorter than 1e-12 is too short in the result, and one whose square overflows (above 1e19 in float32) is zero.
        """
        return self._tau() * unit_features(super().normalise(features))

    def set_means(
        self, class_mean_rows: Tensor, counts: Tensor | None = None, global_mean: Tensor | None = None
    ) -> None:
        """Set the classifier from class means (K, d) of `normalise(features)`."""
        raise NotImplementedError

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor, *, batch_size: int = 8192) -> Self:
        """Set the classifier from all features of a frozen backbone at once: exact class means, then `set_means`.

        Parameters
        ----------
        features : (N, d)
            The output of the backbone, not normalised; on any device.
        labels : (N,) of any integer type, or (N, K) soft labels
            A row with label −100 is ignored. A class without samples counts as not seen.
        batch_size : int
            Rows per block, which change the result only by rounding.

        Returns
        -------
        self
            The training mode does not change. A trained head continues from its state: by the proximal term, the
            solution of an implicit head stays near the previous one.

        Raises
        ------
        ValueError
            If shapes do not fit, no row has a label, or (on the CPU) a label lies outside 0…K−1 or a feature is not
            finite. Then nothing changes.

        Examples
        --------
        >>> from nearest_etf.torchport import ImplicitETFHead
        >>> features, labels = torch.eye(8).repeat(5, 1), torch.arange(8).repeat(5)
        >>> head = ImplicitETFHead(num_features=8, num_classes=8).fit(features, labels)
        >>> bool((head.eval()(features).argmax(1) == labels).all())
        True
        """
        rows, counts = means_of_classes(
            self.normalise, features, labels, self.num_features, self.num_classes, self.weight.device, batch_size
        )
        self.set_means(rows, counts)
        return self

    def extra_repr(self) -> str:
        tau = "'learned'" if self.log_temperature is not None else f"{self._temperature:g}"
        return f"{super().extra_repr()}, temperature={tau}"


def unit_features(f: Tensor) -> Tensor:
    """`f/‖f‖` row by row, (N, d); zero stays zero."""
    length = torch.linalg.vector_norm(f, dim=1, keepdim=True)
    if sees_values(f) and len(f):
        least, most = (float(x) for x in length.detach().aminmax())
        if not SHORTEST <= least <= most < math.inf:  # squares underflow or overflow: scale each row first
            top = f.detach().abs().amax(1, keepdim=True)
            f = f / torch.where((top > 0) & top.isfinite(), top, 1.0)
            return f / torch.linalg.vector_norm(f, dim=1, keepdim=True).clamp_min(SHORTEST)
    return f / length.clamp_min(SHORTEST)


def _warn_of_other_settings(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Warn if a state was made with other settings, such as τ or δ; the module keeps its own."""
    assert isinstance(module, NormalisedHead)
    key = f"{prefix}made_with"  # not read from the buffer, which may be on meta or, after `to_empty`, undefined
    own = torch.tensor(list(module._settings.values()), dtype=torch.float32, device="cpu")
    loaded = state_dict.get(key, own)
    if loaded.shape == own.shape and not loaded.is_meta:
        stored = loaded.to("cpu")
        same = torch.isclose(stored.float(), own.to(stored.dtype).float()).tolist()  # a cast to half rounds both
        differing = ", ".join(
            f"{name} = {then:g} and not {now:g}"
            for (name, now), then, equal in zip(module._settings.items(), stored.tolist(), same, strict=True)
            if not equal
        )
        if differing:
            warnings.warn(
                f"this state of a {type(module).__name__} was made with {differing}. The head keeps its own setting; "
                "the next training step updates its classifier.",
                UserWarning,
                stacklevel=2,
            )
    state_dict[key] = own.to(loaded)
