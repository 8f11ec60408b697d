"""The solver's cache for checkpoints of Accelerate; this module does not import Accelerate."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..heads.solving import SolvingHead


class WarmStarts:
    """The warm starts of a model's heads, for `accelerator.register_for_checkpointing(WarmStarts(model))`.

    A `state_dict` contains everything that training needs, but with 64 or more classes the last bits of a step also
    depend on this cache: with it, a run that continues from `load_state` equals an uninterrupted one bit by bit.

    Parameters
    ----------
    model : nn.Module
        Before or after `accelerator.prepare`.

    Examples
    --------
    >>> from nearest_etf.torchport import ImplicitETFHead
    >>> WarmStarts(nn.Sequential(nn.Linear(4, 4), ImplicitETFHead(4, 3))).state_dict()
    {'1': None}
    """

    def __init__(self, model: nn.Module) -> None:
        self.heads = {name: module for name, module in model.named_modules() if isinstance(module, SolvingHead)}

    def state_dict(self) -> dict[str, Tensor | None]:
        """The warm start of each implicit or tight-frame head, by its name."""
        return {name: head.warm_start for name, head in self.heads.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the warm starts, after the state of the model, as `load_state` does."""
        for name, head in self.heads.items():
            basis = state.get(name)
            head.warm_start = None if basis is None else basis.to(head.weight.device)
