"""The callback and the module for Lightning under its older name (`import pytorch_lightning`, tested with 2.6)."""

from __future__ import annotations

from pytorch_lightning import Callback, LightningModule

from .collapse_logging import CollapseHooks
from .lightning_steps import ClassifierSteps


class NeuralCollapseCallback(CollapseHooks, Callback):
    __doc__ = CollapseHooks.__doc__


class ETFClassifier(ClassifierSteps, LightningModule):
    __doc__ = ClassifierSteps.__doc__
