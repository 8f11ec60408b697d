"""Collapse metrics in the loop of another library: the shared part of the callbacks for both namespaces of Lightning.

A hook records the input of the classifier, so that no further forward pass is needed. Features are kept
until the end of the epoch, on the CPU and up to a limit, for the metrics that depend on single samples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...common.errors import nearest_name
from ...reference.collapse import NeuralCollapse
from ..any_model import catching, linear_layer, one_matrix
from ..collapse import NeuralCollapseMeter
from ..heads import Head
from ..heads.solving import SolvingHead
from ..targets import INTEGERS

STAGES = ("train", "val", "test")
KEPT_BYTES = 2**30  # of features per process; for a larger epoch NC4 and the cosine margins are omitted


class CollapseRecorder:
    """Metrics of an epoch from the inputs of a classifier; per batch: `begin_batch`, the forward pass, `end_batch`.

    Parameters
    ----------
    network : nn.Module
    classifier : str, nn.Module or None
        The head of this package or the `nn.Linear` that computes the logits, or its name. None: the only head of this
        package in the network.
    kept_bytes : int
        The largest size of the features that are kept for the second pass.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> recorder = CollapseRecorder(model, "2")
    >>> recorder.begin_batch()
    >>> logits = model(torch.randn(6, 4))
    >>> recorder.end_batch(torch.tensor([0, 1, 2, 0, 1, 2]))
    >>> figures = recorder.figures()
    >>> 0 <= figures["nc4"] <= 1
    True
    """

    def __init__(self, network: nn.Module, classifier: str | nn.Module | None, kept_bytes: int = KEPT_BYTES) -> None:
        self.linear: Any = linear_layer(network, _only_head(network) if classifier is None else classifier)
        K, d = self.linear.weight.shape
        device = self.linear.weight.device
        self.meter = NeuralCollapseMeter(d, K, "cpu" if device.type == "mps" else device)  # MPS lacks float64
        self.kept: list[tuple[Tensor, Tensor]] | None = []
        self.kept_bytes, self.size = kept_bytes, 0
        self.hooks, self.caught = ExitStack(), list[Any]()

    def begin_batch(self) -> None:
        """Hook the classifier for one forward pass."""
        self.hooks.close()
        self.caught = self.hooks.enter_context(catching(self.linear, of_input=True))

    @torch.no_grad()
    def end_batch(self, labels: Any) -> None:
        """Remove the hook, and add its features to the meter, with labels (B,) of any integer type."""
        self.hooks.close()
        x = one_matrix(self.caught, of_input=True)
        if isinstance(self.linear, Head):
            x = self.linear.normalise(x)
        x = x.to(self.meter.counts.device)
        y = torch.as_tensor(labels, device=x.device)
        y = y.long() if y.dtype in INTEGERS else y  # the meter refuses other types
        self.meter.update(x, y)
        self.size += x.numel() * x.element_size()
        if self.size > self.kept_bytes:
            self.kept = None
        if self.kept is not None:
            self.kept.append((x.cpu(), y.cpu()))

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """The finite metrics; under several processes, each must call this, and receives those of all samples.

        Raises
        ------
        ValueError
            As `NeuralCollapseMeter.compute`, for example if fewer than two classes were seen.
        """
        W, b, meter = self.linear.weight, self.linear.bias, self.meter
        several = dist.is_available() and dist.is_initialized()
        kept = torch.tensor(float(self.kept is not None), device=meter.counts.device)
        if several:
            meter.all_reduce()
            dist.all_reduce(kept, dist.ReduceOp.MIN)
        found: NeuralCollapse = meter.compute(W, b)
        if kept:
            second = meter.second_pass(W, b)
            for x, y in self.kept or []:
                second.update(x.to(meter.counts.device), y.to(meter.counts.device))
            if several:
                second.all_reduce()
            found = second.compute()
        return {name: v for name, v in asdict(found).items() if isinstance(v, float) and math.isfinite(v)}


class CollapseHooks:
    """The hooks of a Lightning callback that logs collapse metrics and solver diagnostics at the end of an epoch.

    The names are `val_nc1`, `val_nc4`, `val_etf_distance_between`, …, and for an implicit or tight-frame head
    `solver_gap`, `solver_condition`, …, of the last training step. For further validation or test loaders the names of
    the metrics end with `_1`, ….

    Parameters
    ----------
    classifier : str or nn.Module, optional
        The head of this package or the `nn.Linear` that computes the logits, or its name in the LightningModule, such
        as "model.fc". Default: the only head of this package in the module.
    stages : sequence of {"train", "val", "test"}
        The loops to measure. In "train" the features are those of the training steps, from augmented images and with
        changing weights; W is that at the end of the epoch.
    labels : function
        Maps a batch to its labels (B,); default: the second of a pair, or the entry "labels" or "label" of a mapping.
    kept_bytes : int
        Up to this size, the features of an epoch are kept on the CPU of each process; for more, NC4 and the cosine
        margins are omitted. Default: 1 GiB.

    Raises
    ------
    ValueError
        If a stage is unknown; at the start of an epoch, if there is no such classifier; at the end of a batch, if it
        did not run exactly once.

    Notes
    -----
    Under several processes the metrics are those of all samples; a `DistributedSampler` repeats some to fill the last
    batch. If the metrics of an epoch are undefined, for example with only one class, a warning replaces them.
    """

    def __init__(
        self,
        classifier: str | nn.Module | None = None,
        *,
        stages: Sequence[str] = ("val",),
        labels: Callable[[Any], Any] | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        super().__init__()
        for stage in stages:
            if stage not in STAGES:
                raise ValueError(nearest_name("stage", stage, STAGES))
        self.classifier, self.stages, self.kept_bytes = classifier, tuple(stages), kept_bytes
        self.labels = labels or labels_of
        self.recorders: dict[str, list[CollapseRecorder]] = {}

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._begin("train", 1, trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._begin_batch("train", 0)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._end_batch("train", 0, batch)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._log("train", pl_module)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._begin("val", len(trainer.num_val_batches), trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin_batch("val", dataloader_idx)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._end_batch("val", dataloader_idx, batch)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._log("val", pl_module)

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._begin("test", len(trainer.num_test_batches), trainer, pl_module)

    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin_batch("test", dataloader_idx)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._end_batch("test", dataloader_idx, batch)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._log("test", pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        for recorder in (recorder for recorders in self.recorders.values() for recorder in recorders):
            recorder.hooks.close()
        self.recorders.clear()

    def _begin(self, stage: str, loaders: int, trainer: Any, network: nn.Module) -> None:
        if stage in self.stages and not trainer.sanity_checking:
            recorders = [CollapseRecorder(network, self.classifier, self.kept_bytes) for _ in range(loaders)]
            self.recorders[stage] = recorders

    def _begin_batch(self, stage: str, loader: int) -> None:
        if stage in self.recorders:
            self.recorders[stage][loader].begin_batch()

    def _end_batch(self, stage: str, loader: int, batch: Any) -> None:
        if stage in self.recorders:
            self.recorders[stage][loader].end_batch(self.labels(batch))

    def _log(self, stage: str, pl_module: Any) -> None:
        recorders = self.recorders.pop(stage, [])
        for loader, recorder in enumerate(recorders):
            try:
                figures = recorder.figures()
            except ValueError as error:
                warnings.warn(f"no collapse metrics for this epoch ({stage}): {error}", UserWarning, stacklevel=2)
                continue
            suffix = f"_{loader}" if loader else ""
            named = {f"{stage}_{name}{suffix}": value for name, value in figures.items()}
            pl_module.log_dict(named | health_of(recorder.linear), sync_dist=True)


def health_of(linear: nn.Module) -> dict[str, float]:
    """Solver diagnostics of the last step as `solver_gap`, …; empty for a head without a solver."""
    health = linear.solution_health() if isinstance(linear, SolvingHead) else {}
    return {f"solver_{name}": value for name, value in health.items() if math.isfinite(value)}


def labels_of(batch: Any) -> Tensor:
    """The labels of a batch: the second of a pair, or the entry "labels" or "label" of a mapping.

    >>> labels_of((torch.zeros(2, 3), torch.tensor([0, 1]))), labels_of({"x": None, "labels": torch.tensor([2])})
    (tensor([0, 1]), tensor([2]))
    """
    if isinstance(batch, Mapping):
        for name in ("labels", "label"):
            if name in batch:
                return batch[name]
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[1]
    raise TypeError(
        f"a batch is a {type(batch).__name__}; expected a pair (images, labels) or a mapping with 'labels': give the "
        "callback a function that returns them, labels=lambda batch: …"
    )


def _only_head(network: nn.Module) -> nn.Module:
    heads = [module for module in network.modules() if isinstance(module, Head)]
    if len(heads) != 1:
        raise ValueError(
            f"{type(network).__name__} has {len(heads)} heads of nearest_etf; expected one, or the name of the linear "
            "layer that computes the logits: classifier='model.fc'."
        )
    return heads[0]
