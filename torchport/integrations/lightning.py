"""A callback and a module for Lightning (`import lightning`, tested with 2.6); see also `pytorch_lightning.py`.

Examples
--------
>>> from torch import nn
>>> from nearest_etf.torchport import ImplicitETFHead
>>> module = ETFClassifier(nn.Flatten(), ImplicitETFHead(num_features=64, num_classes=10))
>>> callbacks = [NeuralCollapseCallback(stages=("train", "val"))]  # for Trainer(callbacks=callbacks).fit(module, …)
"""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule

from .collapse_logging import CollapseHooks
from .lightning_steps import ClassifierSteps


class NeuralCollapseCallback(CollapseHooks, Callback):
    __doc__ = CollapseHooks.__doc__


class ETFClassifier(ClassifierSteps, LightningModule):
    __doc__ = ClassifierSteps.__doc__
