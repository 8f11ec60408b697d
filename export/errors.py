"""What can go wrong between a trained model and an answer: one family of errors, one clear line each."""

from __future__ import annotations

from ..common.errors import UserError


class ExportError(UserError):
    """A model that cannot be exported with these options; the base of the errors below."""


class ModelFileError(ExportError):
    """A model file that is missing, damaged, of another kind, or that cannot be written."""


class InputError(ExportError):
    """Images (or features) that the model cannot classify."""


class CheckError(ExportError):
    """An exported model that differs from PyTorch by more than its bound; no file was left."""

    exit_status = 1
