"""`etf-train`: accepted arguments, written files, printed lines, and errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from PIL import Image

from nearest_etf import __version__
from nearest_etf.torchport.training.etf_train import build_parser, main, process_group
from nearest_etf.torchport.training.run.settings import recipe_names, recipe_text
from nearest_etf.torchport.training.train import TrainingError

QUICK = ["digits", "--samples-per-class", "10", "--batch-size", "50", "--epochs", "1", "--backbone", "mlp"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["digit"], "unknown recipe 'digit': did you mean 'digits'"),
        ([*QUICK, "--head", "implict"], "did you mean 'implicit'"),
        ([*QUICK, "--headd", "fixed"], "unknown flag '--headd': did you mean '--head'"),
        ([*QUICK, "more"], "unexpected argument 'more'"),
        ([*QUICK, "--epochs", "many"], "'many' is not of type int"),
        ([*QUICK, "--data", "cifar11"], "did you mean 'cifar10'"),
        ([*QUICK, "--device", "abacus"], "device 'abacus' cannot be used here"),
        *(([*QUICK, "--device", name], f"device {name!r} cannot be used here") for name in ("meta", "hpu", "xpu:9")),
        ([*QUICK, "--delta", "1e308"], "delta is 1e+308, but has to be at most 1e+30"),
        (
            [*QUICK, "--seed", "1" + 20 * "0"],
            "seed is 100000000000000000000, but has to be at most 9223372036854775807",
        ),
        ([*QUICK, "--epochs", "9" * 5000], "is not of type int"),
        ([*QUICK, "--head", "x" * 5000], "…: did you mean"),
        ([*QUICK, "--weights", "w" * 300], "w cannot be read (File name too long): expected tensors by name"),
        (["r" * 300 + ".toml"], "r.toml cannot be read (File name too long): expected a recipe"),
        (["--data", "./" + "d" * 300], "d: File name too long"),
        (["sweep", *QUICK, "--seeds", "0"], "seeds is 0, but has to be at least 1"),
        ([*QUICK, "--num-features", "4"], "10 classes with 4 features"),
        ([*QUICK, "--batch-size", "200"], "batch_size is 200, but there are 100 images"),
        ([*QUICK, "--recalibrate", "--head", "fixed"], "recalibrate is for the heads implicit, class-mean"),
        ([*QUICK, "--resume"], "run is not a run folder: it has no config.json"),
        ([*QUICK, "--val-fraction", "1"], "val_fraction is 1.0, but has to be at most 0.9"),
        ([], "name a recipe"),
    ],
)
def test_usage_errors_are_one_line_and_write_nothing(
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


@pytest.mark.parametrize("place", ["file/run", "n" * 300, "/".join(["deep"] * 2000)])
def test_an_impossible_output_folder_is_one_line(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main([*QUICK, "--output", str(tmp_path / place)]) == 2
    error = capsys.readouterr().err
    assert "cannot be created (Not a directory): choose another --output" in error or "File name too long" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_network_that_does_not_fit_memory_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for features in ("1" + 12 * "0", "9" * 18):
        assert main([*QUICK, "--num-features", features, "--output", str(tmp_path / "run")]) == 1
        error = capsys.readouterr().err
        assert error.startswith("etf-train: not enough memory (")
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_process_group_is_destroyed_and_a_lost_process_is_reported(tmp_path: Path) -> None:
    def begin(name: str) -> None:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path / name}", rank=0, world_size=1)

    with process_group():  # one process
        pass
    begin("well")
    with process_group():
        pass
    assert not dist.is_initialized()
    begin("lost")
    try:
        with (
            pytest.raises(
                TrainingError,
                match=r"process 0 of 1 lost the connection to another one \(RuntimeError: .*Connection reset",
            ),
            process_group(),
        ):
            raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")
        with pytest.raises(RuntimeError, match="a bug"), process_group():
            raise RuntimeError("a bug")
    finally:
        dist.destroy_process_group()


def test_a_run_folder_is_replaced_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = [*QUICK, "--output", str(run)]
    assert main(command) == 0
    assert re.match(rf"{run}/recalibrated\.pt: train \d+\.\d\d %, test \d+\.\d\d %; training", capsys.readouterr().out)
    names = {p.name for p in run.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "metrics.csv", "curves.png", "log.txt", "last.pt"),
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
    assert main([*command, "--resume", "--lr", "0.2"]) == 2
    assert "was trained with lr = 0.001, not 0.2" in capsys.readouterr().err
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


def test_help_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "examples:" in text
    assert "--optimizer NAME, --optimiser NAME" in text
    assert "[0.2 for an image folder with neither val/ nor test/, else 0]" in text
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.split() == recipe_names()
    assert main(["--show", "digits"]) == 0
    assert capsys.readouterr().out == recipe_text("digits")
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"etf-train {__version__}\n"


@pytest.mark.parametrize("flag", ["--list", "--help", "--version", "--show=digits", "--nonsense", "--show=nothing"])
def test_commands_without_training_load_neither_torch_nor_numpy(flag: str) -> None:
    code = (
        "import sys; from nearest_etf.torchport.training.etf_train import main\n"
        f"try: main([{flag!r}])\n"
        "except SystemExit: pass\n"
        "loaded = {'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules); assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_quiet_run_prints_nothing_and_logs_everything(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--head", "fixed", "--quiet", "--output", str(tmp_path / "run")]) == 0
    assert main(["sweep", *QUICK, "--heads", "learned", "--seeds", "1", "--quiet", "--output", str(tmp_path)]) == 0
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert "epoch 1/1" in (tmp_path / "run" / "log.txt").read_text()
    assert "epoch 1/1" in (tmp_path / "learned-seed0" / "log.txt").read_text()
    assert main([*QUICK, "--quiet", "--output", str(tmp_path / "run")]) == 2
    assert "exists" in capfd.readouterr().err


def test_flags_have_aliases() -> None:
    parse = build_parser().parse_args
    for words in (["--optimizer", "agd", "--lr", "0.5"], ["--optimiser", "agd", "--learning-rate", "0.5"]):
        given = parse([*words, "--grad-accum-steps", "2"])
        assert (given.optimizer, given.lr, given.grad_accum_steps) == ("agd", 0.5, 2)


def test_a_failed_run_is_status_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--lr", "1e30", "--output", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("etf-train: the loss is not finite in epoch 1")


def test_a_class_of_one_image_is_named_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "images" / name / "0.png")
    assert main(["--data", str(tmp_path / "images"), "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "class 'cat' has a single training image" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
