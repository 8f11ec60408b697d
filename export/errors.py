"""What can go wrong between a trained model and an answer: one family of errors, one clear line each."""

from __future__ import annotations


class ExportError(ValueError):
    """A model that cannot be exported as asked, and the base of the errors below."""


class ModelFileError(ExportError):
    """A model file that is missing, damaged, of another kind, or that cannot be written."""


class InputError(ExportError):
    """Images (or features) that the model cannot classify."""


class CheckError(ExportError):
    """An exported model that differs from PyTorch by more than is allowed; no file was left."""


def first_line(error: BaseException) -> str:
    """What another library's error says, cut to the line that a message of ours can quote.

    >>> first_line(RuntimeError("shapes differ\\n  in conv2d"))
    'shapes differ'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
