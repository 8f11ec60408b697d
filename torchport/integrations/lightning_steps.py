"""Training steps and checkpoints of a model with a head in Lightning, shared by both namespaces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ..heads import Classifier, Head

KEY = "nearest_etf"  # of this package's entry in a checkpoint


def adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """AdamW with a learning rate of 1e-3."""
    return torch.optim.AdamW(parameters, lr=1e-3)


class ClassifierSteps:
    """A LightningModule around a backbone with a head: steps, logs, optimizer, and exact resumption.

    Parameters
    ----------
    backbone : nn.Module
        From images (N, …) to features (N, d).
    head : Head
    loss : function of (logits (N, K), labels (N,))
        Default: the cross-entropy.
    optimizer : function of parameters
        Default: AdamW with a learning rate of 1e-3. The ETF heads have no parameters of their own.
    scheduler : function of an optimizer, optional
        Returns a learning-rate schedule, with one step per epoch.

    Attributes
    ----------
    model : Classifier

    Notes
    -----
    Batches are pairs (images, labels). `train_loss`, `val_loss`, `val_accuracy`, `test_loss` and `test_accuracy` are
    logged. With gradient accumulation, each microbatch is a batch for the running class means.

    Besides the state, a checkpoint contains the solver's warm start, on which the last bits of the next step depend,
    and the state of torch's random generators, which Lightning omits. So a single process on a CPU that resumes at the
    end of an epoch equals an uninterrupted one bit by bit. With several processes, the generators are not restored. To
    rebuild the module from a checkpoint: `ETFClassifier.load_from_checkpoint(path, backbone=…, head=…)`.
    """

    log: Callable[..., None]

    def __init__(
        self,
        backbone: nn.Module,
        head: Head,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = adamw,
        scheduler: Callable[[Optimizer], Any] | None = None,
    ) -> None:
        super().__init__()
        self.model: Classifier[Any] = Classifier(backbone, head)
        self.loss, self.optimizer, self.scheduler = loss, optimizer, scheduler
        self._resumed: dict[str, Any] | None = None
        self._between_epochs = True
        self._last_warm_start: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of the stored classifier."""
        return self.model(images, update=False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch; its labels update the class means of the head."""
        images, labels = batch
        loss = self.loss(self.model(images, labels), labels)
        self.log("train_loss", loss, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and accuracy of the stored classifier on validation data."""
        self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and accuracy of the stored classifier on test data."""
        self._evaluate("test", batch)

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> Tensor:
        """Logits of a batch of images, or of a pair (images, labels)."""
        return self(batch[0] if isinstance(batch, tuple | list) else batch)  # type: ignore[operator]

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule if there is one."""
        optimizer = self.optimizer(self.parameters())  # type: ignore[attr-defined]
        return optimizer if self.scheduler is None else ([optimizer], [self.scheduler(optimizer)])

    def on_train_epoch_start(self) -> None:
        """Record that an epoch has begun."""
        self._between_epochs = False

    def on_train_epoch_end(self) -> None:
        """Record that the epoch has ended; Lightning writes its checkpoints afterwards."""
        self._between_epochs = True

    def on_train_end(self) -> None:
        """Keep the warm start, which is lost when Lightning then moves the module to the CPU."""
        self._last_warm_start = getattr(self.model.head, "warm_start", None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the warm start and, between epochs, the random state to the checkpoint."""
        random = _random_state() if self._between_epochs else None
        warm_start = getattr(self.model.head, "warm_start", None)
        if warm_start is None:
            warm_start = self._last_warm_start
        checkpoint[KEY] = {"warm_start": warm_start, "random": random}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the warm start and the random state until training starts; the module's state is not loaded yet."""
        self._resumed = checkpoint.get(KEY)

    def on_train_start(self) -> None:
        """Restore them, after everything that draws random numbers before the first batch."""
        resumed, self._resumed, self._last_warm_start = self._resumed, None, None
        if resumed is None:
            return
        if resumed["warm_start"] is not None:
            self.model.head.warm_start = resumed["warm_start"].to(self.model.head.weight.device)
        trainer = self.trainer  # type: ignore[attr-defined]
        if resumed["random"] is None or trainer.world_size > 1:
            return
        torch.set_rng_state(resumed["random"]["torch"])
        if resumed["random"]["cuda"]:
            torch.cuda.set_rng_state_all(resumed["random"]["cuda"])
        if (fetcher := getattr(trainer.fit_loop, "_data_fetcher", None)) is not None:
            iter(fetcher)  # again: the loaders' iterators draw their seeds when Lightning makes them

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = self.model(images)
        accuracy = (logits.argmax(1) == labels).float().mean()
        for name, value in (("loss", self.loss(logits, labels)), ("accuracy", accuracy)):
            self.log(f"{stage}_{name}", value, batch_size=len(labels), sync_dist=True)


def _random_state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
