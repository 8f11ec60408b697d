"""An exponential moving average of a model's weights, which is then the model to evaluate and to export.

    w̄ ← β w̄ + (1−β) w,    β = min(decay, (1+t)/(10+t)) after step t

as in timm's `--model-ema` with warm-up; without it, short runs average mostly initial weights.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist

from ..heads import Classifier
from .run.settings import Settings


class WeightAverage:
    """The moving average of a model if `model_ema` is set, else the model itself.

    Parameters, statistics of batch norm and running class means are averaged; the classifier of an ETF head follows
    from its averaged means.

    Parameters
    ----------
    model : Classifier
        Before it is compiled or wrapped.
    settings : Settings
        `model_ema`, `model_ema_decay`.

    Examples
    --------
    >>> from ..heads import LinearHead
    >>> model = Classifier(torch.nn.Identity(), LinearHead(2, 3))
    >>> average = WeightAverage(model, Settings(model_ema=True))
    >>> _ = model.head.bias.data.fill_(11.0), average.model().head.bias.data.fill_(0.0)
    >>> average.update()  # β = 2/11
    >>> average.model().head.bias.tolist()
    [9.0, 9.0, 9.0]
    """

    def __init__(self, model: Classifier[Any], settings: Settings) -> None:
        self.decay, self.steps = settings.model_ema_decay, 0
        self._model, self._average = model, model
        if settings.model_ema:
            self._average = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self) -> None:
        """Update the average after a step."""
        if self._average is self._model:
            return
        self.steps += 1
        beta = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averaged, latest = [], []
        parameters = {name for name, _ in self._average.named_parameters()}
        theirs = self._model.state_dict()
        for name, mean in self._average.state_dict().items():
            means = name.startswith(("backbone.", "head.running."))
            if mean.is_floating_point() and (name in parameters or means):
                averaged.append(mean)
                latest.append(theirs[name])
            else:
                mean.copy_(theirs[name])
        torch._foreach_lerp_(averaged, latest, 1 - beta)

    def model(self) -> Classifier[Any]:
        """The model to evaluate, with the classifier that follows from its means."""
        average = self._average
        if average is not self._model:
            if dist.is_initialized():
                for buffer in average.buffers():  # batch norm differs between processes
                    dist.broadcast(buffer, 0)
            if hasattr(average.head, "refresh"):
                average.head.load_state_dict(average.head.state_dict())  # clears the head's cache
                average.head.refresh()
        return average

    def restart(self) -> None:
        """Restart the average from the current model."""
        if self._average is not self._model:
            self.steps = 0
            self._average.load_state_dict(self._model.state_dict())

    def models(self) -> list[Classifier[Any]]:
        """The model, and its average where there is one."""
        return [self._model] if self._average is self._model else [self._model, self._average]

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint; empty without an average."""
        if self._average is self._model:
            return {}
        return {"steps": self.steps, "model": self._average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        if state:
            self.steps = state["steps"]
            self._average.load_state_dict(state["model"])
