"""The tables of old names: every old name is translated, and present names stay unchanged."""

from __future__ import annotations

from dataclasses import fields

import pytest

from nearest_etf.common import old_names
from nearest_etf.torchport.heads import FixedETFHead, ImplicitETFHead
from nearest_etf.torchport.training.run.settings import Settings


def test_old_settings_have_present_names() -> None:
    known = {f.name for f in fields(Settings)}
    assert set(old_names.SETTINGS.values()) <= known
    assert not set(old_names.SETTINGS) & known


def test_old_buffers_have_present_names() -> None:
    for head in (FixedETFHead(4, 3), ImplicitETFHead(4, 3)):
        assert set(old_names.BUFFERS.values()) <= head.state_dict().keys()
        assert all(old_names.present_buffer(key) == key for key in head.state_dict())


@pytest.mark.parametrize("prefix", ["", "head.", "module.head."])
def test_buffers_are_translated_under_any_prefix(prefix: str) -> None:
    for old, present in old_names.BUFFERS.items():
        assert old_names.present_buffer(prefix + old) == prefix + present
    assert old_names.present_buffer(prefix + "xmeans.means") == prefix + "xmeans.means"
