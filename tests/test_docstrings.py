"""Every docstring example runs and gives the stated output, and the docstring of every public name is complete."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import sys
from enum import EnumMeta
from typing import Any

import pytest

ROOMS = ("reference", "torchport", "export")
SECTION = re.compile(r"^([A-Z][A-Za-z]+)\n-{3,}$", re.MULTILINE)
SOURCE = re.compile(r"arXiv|\b(?:19|20)\d\d\b")  # a reference to a paper
SHAPE = re.compile(r"\([^()]*(?:\bd\b|\bK\b|\bN\b|\bB\b|\bm\b|H, W|…)[^()]*\)")
WITHOUT_FORMULA = ("export", "torchport.heads.classifier", "torchport.heads.base", "torchport.heads.linear")


def modules() -> list[str]:
    names = []
    for room in ("common", *ROOMS):
        package = importlib.import_module(f"nearest_etf.{room}")
        names += [package.__name__, *(m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + "."))]
    return names


def public_names() -> list[str]:
    return [f"{room}.{name}" for room in ROOMS for name in importlib.import_module(f"nearest_etf.{room}").__all__]


def has_source(text: str) -> bool:
    """Whether the text names a paper, directly or by naming a module of the reference that does."""
    followed = {f"nearest_etf.{name}" for name in re.findall(r"`(reference\.\w+)`", text)} & set(modules())
    return any(SOURCE.search(words) for words in (text, *(importlib.import_module(m).__doc__ or "" for m in followed)))


def described(text: str) -> set[str]:
    """The names that the sections of a docstring describe: arguments, attributes and the like."""
    entries = re.findall(r"^([\w*, ]+?)(?: : .*)?$", text, re.MULTILINE)
    return {name for entry in entries for name in entry.split(", ")}


def lacking(found: Any) -> list[str]:
    """The required parts that the docstring of a public name lacks."""
    text = inspect.getdoc(found) or ""
    if inspect.isclass(found) and issubclass(found, Exception):
        return [] if text.endswith(".") else ["a sentence"]
    sections = {match[1] for match in SECTION.finditer(text)}
    module = found.__module__.removeprefix("nearest_etf.")
    sourced = has_source(text) or has_source(sys.modules[found.__module__].__doc__ or "")
    called = inspect.isfunction(found) or "Parameters" in sections  # other classes are results of functions
    arguments = set(inspect.signature(found).parameters) - {"self"} if called else set()
    names = described(text)
    checks = {
        "Examples": "Examples" in sections and ">>>" in text,
        "Raises": not called or "Raises" in sections,
        "Parameters or Attributes": bool(sections & {"Parameters", "Attributes"}),
        "a shape": bool(SHAPE.search(text)) or module.startswith("export") or issubclass(type(found), EnumMeta),
        "a source": sourced or module.startswith(WITHOUT_FORMULA),
        **{f"the argument {name}": name in names or "others" in names for name in arguments},
    }
    return [what for what, there in checks.items() if not there]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", public_names())
def test_docstrings_are_complete(name: str) -> None:
    room, _, short = name.partition(".")
    assert lacking(getattr(importlib.import_module(f"nearest_etf.{room}"), short)) == []
