"""What a run folder accepts, and what it keeps."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nearest_etf.torchport.training.run.folder import RunFolder, refused_changes
from nearest_etf.torchport.training.run.reading import RunError, read_rows, read_run
from nearest_etf.torchport.training.run.settings import Settings, SettingsError, settings_from

TINY = Settings(epochs=3)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run folder with three epochs."""
    folder = RunFolder(tmp_path / "run", TINY)
    folder.begin()
    folder.write_config(TINY, {"name": "digits"}, {"versions": {}})
    for epoch in (1, 2, 3):
        folder.append({"epoch": epoch})
    return folder


def test_a_truncated_last_line_is_dropped(folder: RunFolder) -> None:
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"epoch": 4})[:-2])
    with pytest.warns(UserWarning, match="line 4 was cut short"):
        folder.truncate(2)
    assert read_rows(folder.path) == [{"epoch": 1}, {"epoch": 2}]
    with pytest.warns(UserWarning, match=r"metrics\.jsonl lacks the metrics of epoch 3"):
        folder.truncate(3)
    folder.append({"epoch": 3, "loss": 0.5})
    assert read_rows(folder.path)[-1] == {"epoch": 3, "loss": 0.5}


@pytest.mark.parametrize("change", ["number", "gone", "twice", "order"])
def test_rows_that_have_changed_are_refused_with_the_line(folder: RunFolder, change: str) -> None:
    file = folder.path / "metrics.jsonl"
    folder.append({"epoch": 4, "loss": 0.25})
    lines = file.read_text().splitlines(keepends=True)
    changed = {
        "number": [*lines[:3], lines[3].replace("0.25", "0.26")],
        "gone": [*lines[:1], *lines[2:]],
        "twice": [*lines[:2], *lines[1:]],
        "order": [lines[0], lines[2], lines[1], lines[3]],
    }[change]
    file.write_text("".join(changed))
    number = {"number": 4, "gone": 2, "twice": 3, "order": 2}[change]
    with pytest.raises(
        RunError, match=rf"metrics\.jsonl, line {number}, is damaged \(it has changed since it was writ"
    ):
        read_rows(folder.path)


def test_a_changed_config_is_refused_unless_its_seal_is_removed(folder: RunFolder) -> None:
    file = folder.path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "seal": config["seal"]}))  # another layout
    assert read_run(folder.path).settings == TINY.to_dict()
    config["settings"]["lr"] = 0.3
    file.write_text(json.dumps(config))
    with pytest.raises(RunError, match=r'config\.json is damaged \(it has changed .* delete "seal" in it\): expected'):
        read_run(folder.path)
    del config["seal"]
    file.write_text(json.dumps(config))
    assert read_run(folder.path).settings["lr"] == 0.3


def test_the_table_is_written_however_the_run_ends(folder: RunFolder) -> None:
    folder.append({"epoch": 4, "train_loss": 0.5})
    assert (folder.path / ".lock").exists()
    with pytest.raises(RuntimeError), folder:
        raise RuntimeError
    assert (folder.path / "metrics.csv").read_text() == "epoch,train_loss\n1,\n2,\n3,\n4,0.5\n"
    assert {p.name for p in folder.path.iterdir()} == {"config.json", "metrics.jsonl", "metrics.csv"}


def test_the_constructor_writes_nothing(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", TINY):
        pass
    assert not (tmp_path / "run").exists()


def test_a_folder_is_resumed_or_overwritten_only_on_request(folder: RunFolder, tmp_path: Path) -> None:
    folder.lock.release()
    with pytest.raises(SettingsError, match="exists: choose another --output"):
        RunFolder(folder.path, TINY)
    with pytest.raises(SettingsError, match="was trained with epochs = 3, not 2"):
        RunFolder(folder.path, Settings(epochs=2), resume=True)
    assert len(read_rows(folder.path)) == 3
    assert not RunFolder(folder.path, TINY, resume=True).resumed  # without a checkpoint it starts anew
    replacing = RunFolder(folder.path, TINY, overwrite=True)
    replacing.begin()
    assert [path.name for path in folder.path.iterdir()] == [".lock"]
    replacing.replaced()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for resume, overwrite in ((True, False), (False, True)):
        with pytest.raises(RunError, match="mine is not a run folder: it has no config"):
            RunFolder(tmp_path / "mine", TINY, resume=resume, overwrite=overwrite)


@pytest.mark.parametrize("name", ["best.pt", "recalibrated.pt"])
def test_a_run_that_lost_its_last_checkpoint_does_not_begin_again(folder: RunFolder, name: str) -> None:
    folder.lock.release()
    (folder.path / name).touch()
    with pytest.raises(RunError, match=rf"last\.pt is missing, but there is {name}: restore it"):
        RunFolder(folder.path, TINY, resume=True)
    assert [row["epoch"] for row in read_rows(folder.path)] == [1, 2, 3]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_rows_in_a_pipe_are_refused(folder: RunFolder) -> None:
    file = folder.path / "metrics.jsonl"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(RunError, match="is a pipe or a device"):
        read_rows(folder.path)


def test_a_file_is_not_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is not a run folder"):
        RunFolder(tmp_path / "file", TINY, overwrite=True)


def test_nothing_is_deleted_before_the_new_run_has_a_checkpoint(folder: RunFolder) -> None:
    def rows() -> int:
        return len(read_rows(folder.path))

    folder.lock.release()
    with RunFolder(folder.path, TINY, overwrite=True) as failing:  # it ends without a checkpoint
        failing.begin()
        failing.write_config(TINY, {"name": "digits"}, {})
        assert rows() == 0
    assert rows() == 3
    killed = RunFolder(folder.path, TINY, overwrite=True)
    killed.begin()
    killed.write_config(TINY, {"name": "digits"}, {})
    killed.lock.release()
    (folder.path / ".lock").touch()
    (folder.path / "curves.png.tmp").touch()
    with RunFolder(folder.path, TINY, overwrite=True) as again:
        again.begin()
    assert rows() == 3  # the run that was killed had nothing to lose
    with RunFolder(folder.path, TINY, overwrite=True) as new:
        new.begin()
        new.replaced()
    assert [path.name for path in folder.path.parent.iterdir()] == ["run"]
    assert rows() == 0


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ({"epochs": 3}, {"epochs": 4, "workers": 0}, []),
        ({"epochs": 3}, {"epochs": 2}, ["epochs"]),
        ({"data": "/photos"}, {"data": "elsewhere/photos"}, []),
        ({"data": "/photos"}, {"data": "digits"}, ["data"]),
        ({"data": "digits"}, {"data": "mnist", "lr": 0.5}, ["data", "lr"]),
        ({"image_size": 224}, {}, []),
        ({"data": "/photos", "image_size": 224}, {"data": "/photos", "image_size": 64}, ["image_size"]),
    ],
)
def test_settings_that_a_resumed_run_may_change(
    before: dict[str, object], after: dict[str, object], refused: list[str]
) -> None:
    assert sorted(refused_changes(settings_from(before), settings_from(after))) == refused


def test_a_run_set_aside_is_deleted_after_the_checkpoint_of_a_resumed_one(tmp_path: Path) -> None:
    aside = tmp_path / "run.replaced"
    for folder in (tmp_path / "run", aside):
        with RunFolder(folder, Settings()) as written:
            written.begin()
            written.write_config(Settings(), {"name": "digits"}, {})
    with RunFolder(tmp_path / "run", Settings(), resume=True) as resumed:
        resumed.begin()
        assert aside.is_dir()
        resumed.replaced()
    assert not aside.exists()


def test_an_overwriting_run_killed_before_it_began_starts_again(tmp_path: Path) -> None:
    aside = tmp_path / "run.replaced"
    with RunFolder(aside, Settings()) as written:
        written.begin()
        written.write_config(Settings(), {"name": "digits"}, {})
    with RunFolder(tmp_path / "run", Settings(), overwrite=True) as folder:
        folder.begin()
    assert (tmp_path / "run" / "config.json").is_file()  # it ended without a checkpoint: the earlier run is back
    assert not aside.exists()


def test_a_folder_with_the_name_set_aside_but_without_a_run_is_untouched(tmp_path: Path) -> None:
    (tmp_path / "run.replaced").mkdir()
    (tmp_path / "run.replaced" / "notes.txt").write_text("mine")
    with RunFolder(tmp_path / "run", Settings(), overwrite=True) as folder:
        folder.begin()
        folder.replaced()
    assert (tmp_path / "run.replaced" / "notes.txt").is_file()
