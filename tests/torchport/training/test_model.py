"""Models from settings and from checkpoints; random frames are uniformly distributed and depend on the seed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nearest_etf.torchport.heads import ClassMeanHead, ImplicitETFHead, TightFrameHead
from nearest_etf.torchport.simplex import centred, classifier_from_frame
from nearest_etf.torchport.tight_frame import classifier_from_tight_frame
from nearest_etf.torchport.training.model import build_head, build_model, load_model
from nearest_etf.torchport.training.run.checkpoint import CheckpointError, save_checkpoint
from nearest_etf.torchport.training.run.folder import RunFolder
from nearest_etf.torchport.training.run.reading import read_run
from nearest_etf.torchport.training.run.settings import Settings, SettingsError


def random_frame(num_features: int, num_classes: int, seed: int, formulation: str = "paper") -> torch.Tensor:
    head = build_head(Settings(initial="random", seed=seed, formulation=formulation), num_features, num_classes)
    assert isinstance(head, ImplicitETFHead)
    return head.frame


@pytest.mark.parametrize(("num_features", "formulation"), [(12, "paper"), (12, "gauge-free"), (9, "gauge-free")])
def test_random_initial_frames(num_features: int, formulation: str) -> None:
    settings = Settings(initial="random", formulation=formulation, seed=3)
    before = torch.get_rng_state()
    head = build_head(settings, num_features, 10)
    assert torch.equal(torch.get_rng_state(), before)  # the backbone's weights do not depend on it
    U = random_frame(num_features, 10, seed=3, formulation=formulation)
    torch.testing.assert_close(head.weight, classifier_from_frame(U))
    torch.testing.assert_close(centred(U).T @ centred(U), centred(torch.eye(10)), rtol=0, atol=1e-6)
    assert not torch.allclose(U, random_frame(num_features, 10, seed=4, formulation=formulation), atol=0.1)
    features = torch.randn(30, num_features, generator=torch.Generator().manual_seed(0), requires_grad=True)
    head(features, torch.arange(30) % 10).square().sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_random_frames_have_no_preferred_direction() -> None:
    entries = torch.stack([random_frame(3, 3, seed) for seed in range(2000)]).double()
    assert entries.mean(0).abs().max() < 5 * math.sqrt(1 / 3 / 2000)
    assert (entries.square().mean(0) - 1 / 3).abs().max() < 5 * math.sqrt(4 / 45 / 2000)  # u² of a sphere's point


@pytest.mark.parametrize(("num_features", "num_classes"), [(12, 10), (9, 10), (8, 10), (3, 40)])
def test_random_initial_tight_frames(num_features: int, num_classes: int) -> None:
    d, K = num_features, num_classes
    frames = []
    for seed in (3, 4):
        settings = Settings(head="tight-frame", initial="random", seed=seed)
        before = torch.get_rng_state()
        head = build_head(settings, d, K)
        assert torch.equal(torch.get_rng_state(), before)
        assert isinstance(head, TightFrameHead)
        F = centred(head.frame)
        gram, expected = (F.T @ F, centred(torch.eye(K))) if d >= K - 1 else (F @ F.T, torch.eye(d))
        torch.testing.assert_close(gram, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(head.weight, classifier_from_tight_frame(F))
        frames.append(F)
    assert not torch.allclose(frames[0], frames[1], atol=0.1)


def test_settings_reach_the_heads_for_any_number_of_classes() -> None:
    changed = Settings(
        head="tight-frame", norms="equal", delta=0.01, gradient=False, method="svd", averaging="class", temperature=7.0
    )
    tight = build_head(changed, 3, 10)
    assert isinstance(tight, TightFrameHead)
    assert (tight.norms, tight.delta, tight.gradient, tight.method) == ("equal", 0.01, False, "svd")
    means = build_head(replace(changed, head="class-mean"), 3, 10)
    assert isinstance(means, ClassMeanHead)
    assert not means.gradient
    for head in (tight, means):
        assert head.temperature == 7.0
        assert head.running.averaging == "class"


@pytest.mark.parametrize("head", ["fixed", "implicit"])
def test_more_classes_than_a_simplex_has_vertices_need_another_head(head: str) -> None:
    for formulation in ("paper", "gauge-free"):
        settings = Settings(backbone="mlp", num_features=4, head=head, formulation=formulation)
        with pytest.raises(SettingsError, match=r"10 classes with 4 features.*--head tight-frame, class-mean, learned"):
            build_model(settings, (8, 8, 1), 10)
    with pytest.raises(SettingsError, match='formulation="gauge-free"') as caught:  # which suffices for d = K−1
        build_model(Settings(backbone="mlp", num_features=9), (8, 8, 1), 10)
    assert "--head" not in str(caught.value)


def test_a_head_that_does_not_fit_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match=r"backbone mlp, head implicit: .*10 classes"):
        build_model(Settings(backbone="mlp", num_features=4), (8, 8, 1), 10)


SETTINGS = Settings(backbone="mlp", num_features=16, head="fixed")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two untrained checkpoints."""
    folder = RunFolder(tmp_path / "run", SETTINGS)
    folder.begin()
    folder.write_config(SETTINGS, {}, {})
    data = {"image_shape": (8, 8, 1), "class_names": tuple("0123456789")}
    for name in ("best", "last"):
        model = build_model(SETTINGS, (8, 8, 1), 10)
        contents = {"settings": SETTINGS.to_dict(), "data": data, "model": model.state_dict()}
        save_checkpoint(folder.path / f"{name}.pt", contents)
    return folder.path


def test_the_result_of_a_run_is_loaded_by_default(run: Path) -> None:
    images = torch.randn(3, 1, 8, 8)
    best, settings = load_model(run, "best")
    last, _ = load_model(run, "last")
    assert settings == SETTINGS
    assert not best.training
    assert torch.equal(load_model(run)[0](images), last(images))  # no validation data chose the best
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as rows:
        rows.write('{"epoch": 1, "val_accuracy": 0.5}\n')
    assert torch.equal(load_model(run)[0](images), best(images))
    assert not torch.equal(best(images), last(images))
    assert torch.equal(best(images), load_model(read_run(run, need_rows=False), "best")[0](images))
    (run / "best.pt").unlink()
    assert torch.equal(load_model(run)[0](images), last(images))


def test_models_are_loaded_from_whole_checkpoints_only(run: Path) -> None:
    last = run / "last.pt"
    content = last.read_bytes()
    for damaged in (content[:-1000], b"text"):
        last.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.pt (is damaged|cannot be read) .*expected a checkpoint"):
            load_model(run, "last")
    torch.save({"weights": torch.ones(2)}, last)
    with pytest.raises(CheckpointError, match="of another kind: expected a checkpoint of etf-train, with the format"):
        load_model(run, "last")
    with pytest.raises(CheckpointError, match=r"missing\.pt is missing"):
        load_model(run, "missing")


def test_weights_that_do_not_fit_the_settings_are_refused(run: Path) -> None:
    contents = {
        "settings": {**SETTINGS.to_dict(), "num_features": 32},
        "data": {"image_shape": (8, 8, 1), "class_names": tuple("0123456789")},
        "model": build_model(SETTINGS, (8, 8, 1), 10).state_dict(),
    }
    save_checkpoint(run / "last.pt", contents)
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged .*expected a checkpoint of etf-train with its"):
        load_model(run, "last")
    save_checkpoint(run / "last.pt", {"settings": SETTINGS.to_dict()})
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged .*KeyError: 'data'"):
        load_model(run, "last")
