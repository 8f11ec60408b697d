"""The meaning of a value of `data`: a data set, a mistyped one, or a folder, from any working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearest_etf.torchport.training.data.load import load_data
from nearest_etf.torchport.training.data.split import DataError
from nearest_etf.torchport.training.run.data_path import data_folder, default_output, default_sweep, located
from nearest_etf.torchport.training.run.settings import DATA_SETS, Settings, SettingsError


@pytest.mark.parametrize("value", ["photos", "my images", "images", "./digits", "data/cifar10", "~/pictures", "/x/y"])
def test_other_values_than_data_sets_name_folders(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = data_folder(value)
    assert folder is not None
    assert folder.is_absolute()
    assert "~" not in folder.parts
    with pytest.raises(DataError, match=f"no such folder: {folder}: name the folder of images"):
        load_data(value)


@pytest.mark.parametrize(("value", "meant"), [("cifar11", "cifar10"), ("digit", "digits"), ("image-net", "imagenet")])
def test_a_mistyped_data_set_is_answered_with_its_name(
    value: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"unknown data set '{value}': did you mean '{meant}'"):
        load_data(value)
    (tmp_path / value).mkdir()
    assert data_folder(value) == tmp_path / value


@pytest.mark.parametrize("name", DATA_SETS)
def test_data_sets_take_precedence_over_folders_of_their_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert data_folder(name) is None
    assert located(Settings(data=name)).data == name


def test_a_folder_s_location_is_absolute_and_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = located(Settings(data="photos"))
    assert settings.data == str(tmp_path / "photos")
    assert located(settings, "moved/photos").data == str(tmp_path / "moved" / "photos")
    with pytest.raises(
        SettingsError, match="data is 'moved', but has to be the new location of an image folder: digits is"
    ):
        located(Settings(data="digits"), "moved")
    with pytest.raises(
        SettingsError, match="data is 'digits', but has to be the new location of an image folder: digits is"
    ):
        located(settings, "digits")


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        (Settings(), "digits"),
        (Settings(recipe="digits"), "digits"),
        (Settings(recipe="cifar100-vgg13", data="cifar10"), "cifar100-vgg13-cifar10"),
        (Settings(recipe="cifar10-vgg13", data="cifar10"), "cifar10-vgg13"),
        (Settings(recipe="fine-tune", data="/home/me/birds"), "fine-tune-birds"),
        (Settings(recipe="photos", data="birds"), "birds"),
        (Settings(data="/"), "custom"),
    ],
)
def test_run_folders_are_named_by_recipe_and_data(settings: Settings, folder: str) -> None:
    assert default_sweep(settings) == f"runs/{folder}"
    assert default_output(settings) == f"runs/{folder}-implicit-seed0"
