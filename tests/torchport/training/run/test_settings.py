"""Settings, recipes and the command line: what is accepted, and how the rest is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from nearest_etf.torchport.polar import METHODS
from nearest_etf.torchport.training.etf_train import main
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
    assert settings.temperature == 5.0
    assert recipe_text(name).startswith("# ")
    assert settings_from(settings.to_dict()) == settings


def test_every_method_of_the_layer_can_be_asked_for() -> None:
    # Written out in settings.py, which has to be read without torch.
    method = next(f for f in fields(Settings) if f.name == "method")
    assert method.metadata["choices"] == METHODS


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"head": "implict"}, "unknown head 'implict': did you mean 'implicit'"),
        ({"backbone": "resnet19"}, "did you mean 'resnet18'"),
        ({"optimiser": "adam"}, "did you mean 'adamw'"),
        ({"batchsize": 3}, "unknown setting 'batchsize': did you mean 'batch_size'"),
        ({"epochs": 0}, "epochs is 0, but has to be at least 1"),
        ({"label_noise": 1.5}, "label_noise is 1.5, but has to be at most 1"),
        ({"lr": float("nan")}, "lr is nan, but has to be finite"),
        ({"imbalance_ratio": float("inf")}, "imbalance_ratio is inf, but has to be finite"),
        ({"lr": "fast"}, "lr is 'fast', but has to be of type float"),
        ({"epochs": True}, "epochs is True, but has to be of type int"),
        ({"batch_size": 10, "accumulation": 3}, "does not divide"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        settings_from(values)


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('data = "digits"\nlr = 1\n')
    assert load_recipe(str(recipe)) == Settings(recipe="mine", data="digits", lr=1.0)
    recipe.write_text("lr = = 1")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_recipe(str(recipe))
    with pytest.raises(SettingsError, match="cannot read the recipe"):
        load_recipe(str(tmp_path / "none.toml"))


QUICK = ["digits", "--samples-per-class", "10", "--batch-size", "50", "--epochs", "1", "--backbone", "mlp"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["digit"], "unknown recipe 'digit': did you mean 'digits'"),
        ([*QUICK, "--head", "implict"], "did you mean 'implicit'"),
        ([*QUICK, "--headd", "fixed"], "unknown flag '--headd': did you mean '--head'"),
        ([*QUICK, "more"], "'more' means nothing here"),
        ([*QUICK, "--epochs", "many"], "invalid int value: 'many'"),
        ([*QUICK, "--data", "cifar11"], "did you mean 'cifar10'"),
        ([*QUICK, "--device", "abacus"], "device 'abacus' cannot be used here"),
        ([*QUICK, "--num-features", "4"], "10 classes with 4 features"),
        ([*QUICK, "--batch-size", "200"], "a batch of 200 is more than the 100 images"),
        ([*QUICK, "--recalibrate", "--head", "fixed"], "recalibrate is for the implicit head"),
        ([*QUICK, "--resume"], "holds no run to resume"),
        ([], "name a recipe"),
    ],
)
def test_bad_use_is_one_line_and_leaves_nothing_behind(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "run")] if arguments else []
    try:
        code: object = main([*arguments, *output])
    except SystemExit as exit:
        code = exit.code
    error = capsys.readouterr().err
    assert code == 2
    assert complaint in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_folder_is_replaced_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = [*QUICK, "--output", str(run)]
    assert main(command) == 0
    assert "test accuracy" in capsys.readouterr().out
    names = {p.name for p in run.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "metrics.csv", "curves.png", "log.txt", "best.pt", "last.pt"),
        *("recalibrated.pt", "recalibrated.json"),
    }
    compared = json.loads((run / "recalibrated.json").read_text())
    assert compared["running"].keys() == compared["exact"].keys() >= {"train_accuracy", "test_nc1"}
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["samples_per_class"] == 10
    assert config["data"]["image_shape"] == [8, 8, 1]
    assert len(config["data"]["train_sha256"]) == 64
    assert config["provenance"]["versions"].keys() >= {"nearest-etf", "torch", "numpy"}
    assert config["provenance"].keys() >= {"commit", "device", "cpus", "processes"}

    before = {p: p.read_bytes() for p in run.iterdir()}
    assert main(command) == 2
    assert "exists: choose another --output" in capsys.readouterr().err
    assert main([*command, "--resume", "--epochs", "2"]) == 2
    assert "was trained with epochs = 1, not 2" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in run.iterdir()} == before
    assert main([*command, "--overwrite", "--no-recalibrate"]) == 0
    assert not (run / "recalibrated.pt").exists()
    assert main(["--resume", "--recalibrate", "--output", str(run)]) == 0  # on demand, with nothing left to train
    assert (run / "recalibrated.pt").exists()
    assert json.loads((run / "recalibrated.json").read_text()) == compared

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert main([*QUICK, "--output", str(tmp_path / "mine"), "--overwrite"]) == 2
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_sweep_skips_what_is_done_and_goes_on_after_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", *QUICK, "--heads", "fixed", "implicit", "--seeds", "1", "--output", str(tmp_path)]
    (tmp_path / "fixed-seed0").mkdir()
    (tmp_path / "fixed-seed0" / "notes.txt").touch()
    assert main(command) == 1
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert "fixed-seed0 exists: choose another --output" in lines[0]
    assert lines[1].endswith("implicit-seed0: done")
    (tmp_path / "fixed-seed0" / "notes.txt").unlink()
    assert main(command) == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()[-2:]] == ["done", "done before"]
    (tmp_path / "implicit-seed0" / "recalibrated.json").unlink()  # as if killed on its last steps
    assert main(command) == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()[-2:]] == ["done before", "done"]
    assert main([*command[:-5], "fixd", *command[-4:]]) == 2
    assert "did you mean 'fixed'" in capsys.readouterr().err


def test_help_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    assert "examples:" in capsys.readouterr().out
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.split() == recipe_names()
    assert main(["--show", "digits"]) == 0
    assert 'data = "digits"' in capsys.readouterr().out


def test_settings_are_read_without_torch() -> None:
    path = Path(sys.modules["nearest_etf.torchport.training.run.settings"].__file__ or "")
    code = f"import runpy, sys; runpy.run_path({str(path)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
