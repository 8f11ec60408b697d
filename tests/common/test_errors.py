"""The parts of an error message: one line each, for any input."""

from __future__ import annotations

import pytest

from nearest_etf.common.errors import UserError, first_line, nearest_name


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("bad"), "bad"),
        (RuntimeError("\n  shapes differ\n  in conv2d"), "shapes differ"),
        (KeyError("settings"), "'settings'"),
        (KeyError(), "KeyError"),
        (OSError(28, "No space left"), "[Errno 28] No space left"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_first_line(error: BaseException, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize(("found", "nearest"), [("implict", "implicit"), ("IMPLICIT", "learned"), ("", "learned")])
def test_nearest_name_always_names_one_and_lists_all(found: str, nearest: str) -> None:
    message = nearest_name("head", found, iter(["learned", "fixed", "implicit"]))
    assert message.startswith(f"unknown head {found!r}: did you mean ")
    assert message.endswith("(one of: learned, fixed, implicit)")
    if nearest == "implicit":
        assert "did you mean 'implicit'?" in message


def test_user_errors_are_value_errors_with_status_2() -> None:
    assert issubclass(UserError, ValueError)
    assert UserError("x").exit_status == 2


def test_every_error_of_the_export_is_a_user_error() -> None:
    from nearest_etf.common.files import FileError
    from nearest_etf.common.photo import PhotoError
    from nearest_etf.export import CheckError, ExportError, InputError, ModelFileError

    statuses = {
        kind: kind("x").exit_status for kind in (FileError, PhotoError, ExportError, InputError, ModelFileError)
    }
    assert set(statuses.values()) == {2}
    assert CheckError("x").exit_status == 1
    assert all(issubclass(kind, UserError) for kind in (*statuses, CheckError))
