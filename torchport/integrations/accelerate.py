"""What Accelerate's checkpoints need beside the state of a model with our heads; this file needs no Accelerate."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..heads.solving import SolvingHead


class WarmStarts:
    """The solvers' warm starts of a model, for `accelerator.register_for_checkpointing(WarmStarts(model))`.

    A `state_dict` holds all that training needs, but with 64 classes and more the last bits of a step depend on this
    cache too: with it a run that goes on from `load_state` has the same bits as one that was not stopped.

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
        """The warm start of each head that solves, by its name."""
        return {name: head.warm_start for name, head in self.heads.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them over; the model's own state has to be loaded before, as `load_state` does."""
        for name, head in self.heads.items():
            basis = state.get(name)
            head.warm_start = None if basis is None else basis.to(head.weight.device)
