"""Settings and recipes: accepted values, and errors."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from nearest_etf.torchport.methods.decompose import METHODS
from nearest_etf.torchport.training.run.settings import (
    Settings,
    SettingsError,
    load_recipe,
    recipe_names,
    recipe_text,
    settings_from,
)


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_are_valid_and_set_nothing_twice(name: str) -> None:
    settings = load_recipe(name, {"head": "fixed", "seed": 3})
    assert (settings.recipe, settings.head, settings.seed) == (name, "fixed", 3)
    papers_own = name not in ("digits", "fashion-mnist-cpu", "photos", "fine-tune")
    assert settings.temperature == (5.0 if papers_own else None)
    assert recipe_text(name).startswith("# ")
    assert settings_from(settings.to_dict()) == settings


def test_every_method_of_the_layer_can_be_chosen() -> None:
    # Written out in settings.py, which is imported without torch.
    method = next(f for f in fields(Settings) if f.name == "method")
    assert method.metadata["choices"] == METHODS


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"head": "implict"}, "unknown head 'implict': did you mean 'implicit'"),
        ({"backbone": "resnet19"}, "did you mean 'resnet18'"),
        ({"optimizer": "adamv"}, "unknown optimizer 'adamv': did you mean 'adam"),
        ({"optimiser": "adamv"}, "unknown optimizer 'adamv': did you mean 'adam"),
        ({"optimiser": "sgd", "optimizer": "sgd"}, "'optimiser' is the old name of 'optimizer': use only 'optimizer'"),
        ({"val_fraction": "some"}, "val_fraction is 'some', but has to be of type float"),
        ({"val_fraction": 0.95}, "val_fraction is 0.95, but has to be at most 0.9"),
        ({"val_fraction": -0.1}, "val_fraction is -0.1, but has to be at least 0"),
        ({"lr": None}, "lr is None, but has to be of type float"),
        ({"batchsize": 3}, "unknown setting 'batchsize': did you mean 'batch_size'"),
        ({"epochs": 0}, "epochs is 0, but has to be at least 1"),
        ({"label_noise": 1.5}, "label_noise is 1.5, but has to be at most 1"),
        ({"lr": float("nan")}, "lr is nan, but has to be finite"),
        ({"imbalance_ratio": float("inf")}, "imbalance_ratio is inf, but has to be finite"),
        ({"lr": "fast"}, "lr is 'fast', but has to be of type float"),
        ({"epochs": True}, "epochs is True, but has to be of type int"),
        ({"batch_size": 10, "grad_accum_steps": 3}, "grad_accum_steps 3 does not divide the batch size 10"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        settings_from(values)


def test_a_recipe_of_the_user(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('data = "digits"\nlr = 1\n')
    assert load_recipe(str(recipe)) == Settings(recipe="mine", data="digits", lr=1.0)
    recipe.write_text("lr = = 1")
    with pytest.raises(SettingsError, match=r"mine\.toml is damaged or of another kind .*expected TOML"):
        load_recipe(str(recipe))
    with pytest.raises(SettingsError, match=r"none\.toml is missing: expected a recipe"):
        load_recipe(str(tmp_path / "none.toml"))


def test_old_names_in_a_recipe_are_translated(tmp_path: Path) -> None:
    recipe = tmp_path / "old.toml"
    recipe.write_text('optimiser = "adamw"\naccumulation = 2\n')
    expected = Settings(recipe="old", optimizer="adamw", grad_accum_steps=2)
    assert load_recipe(str(recipe)) == expected
    assert load_recipe(str(recipe), {"accumulation": 4}).grad_accum_steps == 4
    recipe.write_text('optimiser = "adamw"\noptimizer = "sgd"\n')
    with pytest.raises(SettingsError, match="old name"):
        load_recipe(str(recipe))


def test_a_validation_share_is_optional() -> None:
    assert Settings().val_fraction is None
    assert Settings(val_fraction=0).val_fraction == 0.0
    assert settings_from({"val_fraction": None}) == Settings()


def test_temperature_is_documented_as_a_factor() -> None:
    (temperature,) = (f for f in fields(Settings) if f.name == "temperature")
    assert "multiplies" in temperature.metadata["help"]


def test_settings_are_read_without_torch_and_numpy() -> None:
    code = (
        "import sys; from nearest_etf.torchport.training.run import settings, reading, folder;"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
