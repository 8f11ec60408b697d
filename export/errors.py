"""The errors of export and prediction, each with a message of one line."""

from __future__ import annotations

from ..common.errors import UserError


class ExportError(UserError):
    """A model that cannot be exported with these options; the base class of the errors below."""


class ModelFileError(ExportError):
    """A model file that is missing, damaged or of another kind, or that cannot be written."""


class InputError(ExportError):
    """Images (or features) that the model cannot classify."""


class CheckError(ExportError):
    """An exported model that differs from PyTorch by more than its bound."""

    exit_status = 1
