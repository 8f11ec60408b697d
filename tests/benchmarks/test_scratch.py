"""The studies of training from scratch in small: a tiny network on synthetic images, killed, resumed, summarised."""

import importlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nearest_etf import FixedETFHead, ImplicitETFHead
from nearest_etf.torchport.training.data.images import ImageData
from nearest_etf.torchport.training.data.split import Split
from nearest_etf.torchport.training.run.settings import Settings

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"
NAMES = (
    *("scratch", "scratch_run", "scratch_tables", "from_scratch", "gradient", "defaults", "failures", "scale"),
    *("architectures", "few_dimensions"),
)
K = 4


def made_up(*_: Any, **__: Any) -> ImageData:
    """Four separable classes of 4×4 images."""
    rng, splits = np.random.default_rng(0), []
    centres = rng.integers(60, 200, (K, 4, 4, 1))
    for n in (160, 80):
        labels = np.arange(n) % K
        images = np.clip(centres[labels] + rng.normal(0, 40, (n, 4, 4, 1)), 0, 255).astype(np.uint8)
        splits.append(Split(images, labels))
    return ImageData("made up", splits[0], None, splits[1], tuple("abcd"), (0.5,), (0.25,))


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The scripts, with small images, a small network, one τ for each head, and two epochs."""
    monkeypatch.syspath_prepend(str(STUDIES))
    found = SimpleNamespace(**{name: importlib.import_module(name) for name in (*NAMES, "relu_floor")})
    settings = Settings(
        data="digits", backbone="mlp", num_features=8, optimizer="adamw", lr=0.01, batch_size=32, epochs=2
    )
    data = found.scratch.Data(settings, (0.5, 0.9))
    free = found.scratch._free(3, 6, 4, 3)
    large = found.scratch._free(3, 6, 8, 2, 12, tuned_on="ufm-10")
    subset = replace(data, images=120, test=40, measured=60)
    sets = {"digits": data, "cifar100": subset, "ufm-10": free, "ufm-10-large": large}
    for name in ("SMALL", "FULL"):
        monkeypatch.setattr(found.scratch, name, sets)
    monkeypatch.setattr(found.scratch_tables, "SMALL", sets)
    for name, contestant in found.scratch.HEADS.items():
        monkeypatch.setitem(found.scratch.HEADS, name, replace(contestant, values=contestant.values[1:2] or (10.0,)))
    monkeypatch.setattr(found.scratch, "RATES", (0.003, 0.01, 0.03))
    monkeypatch.setattr(found.scratch_run, "loaded", made_up)
    monkeypatch.setattr("paired.write_file", lambda path, text: path.write_text(text))  # write_file waits for the disk
    threads = torch.get_num_threads()
    yield found
    torch.set_num_threads(threads)


def call(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    monkeypatch.setattr("sys.argv", [f"{module.__name__}.py", *map(str, arguments)])
    (module.main if hasattr(module, "main") else lambda: module.conduct(module.STUDY))()  # type: ignore[operator]


def shortened(module: ModuleType, monkeypatch: pytest.MonkeyPatch, seeds: int, sets: dict[str, Any]) -> None:
    """Shorten a study to few seeds, few values of τ, and batches for the small sets."""
    factors, left_out = [], ("2", "5", "10", "20", "30", "40", "60")  # of the values of τ
    for factor in module.FACTORS:
        if factor.name.partition("τ: ")[2] in left_out:
            continue
        batch = factor.change.get("batch")
        change = {**factor.change, "batch": 16 if batch and batch < 300 else 24} if batch else factor.change
        factors += (
            [replace(factor, seeds=seeds if factor.name == "centre" else 1, change=change)]
            if factor.data in sets
            else []
        )
    monkeypatch.setattr(module, "FACTORS", tuple(factors))
    monkeypatch.setattr(module, "STUDY", replace(module.STUDY, factors=tuple(factors)))


def test_studies_are_run_resumed_and_summarised(studies, monkeypatch, tmp_path, capsys):
    a, sets = tmp_path / "a.json", studies.scratch.SMALL
    shortened(studies.from_scratch, monkeypatch, 2, sets)
    call(studies.from_scratch, monkeypatch, "--json", a, "--dry-run")
    planned = capsys.readouterr().out
    trials = 6 * 3 + 2 * 4 * 3  # six heads that are tuned on digits, four on the other two sets; three rates
    assert planned.count("stage='tune'") == trials
    reported = 2 * 11 + 4 + 4 + 7  # three more heads on cifar100
    assert f"{trials + reported} runs left" in planned
    call(studies.from_scratch, monkeypatch, "--json", a, "--minutes", 0)
    assert not a.exists()

    whole, ran = studies.scratch_run.trained, []

    def killed(*arguments: Any) -> dict[str, Any]:
        if len(ran) == 7:
            raise KeyboardInterrupt
        ran.append(arguments)
        return whole(*arguments)

    monkeypatch.setattr(studies.scratch_run, "trained", killed)
    with pytest.raises(KeyboardInterrupt):
        call(studies.from_scratch, monkeypatch, "--json", a)
    before = json.loads(a.read_text())["rows"]
    assert len(before) == 7
    monkeypatch.setattr(studies.scratch_run, "trained", whole)
    call(studies.from_scratch, monkeypatch, "--json", a)
    rows = json.loads(a.read_text())["rows"]
    assert rows[:7] == before
    assert "\n0 runs left" in capsys.readouterr().out
    assert len(rows) == trials + reported
    for row in rows:
        last = sets[row["data"]].settings.epochs
        assert row["at"] == ([last] if row["stage"] == "tune" else list(range(1, last + 1)))
        assert len(row["nc1"]) == len(row["test"]) == len(row["at"])
        if row["stage"] == "report":
            head, data = studies.scratch.HEADS[row["head"]].tuned_as or row["head"], row["data"]
            choice = studies.scratch.chosen(rows, head, data)
            assert {name: row[name] for name in choice} == choice
    centre = [row for row in rows if (row["stage"], row["data"], row["factor"]) == ("report", "digits", "centre")]
    assert np.median([row["accuracy"] for row in centre]) > 0.5  # of four classes
    call(studies.from_scratch, monkeypatch, "--json", a, "--summary")
    told = capsys.readouterr().out
    assert all(f"**{factor.name}**" in told for factor in studies.from_scratch.FACTORS)
    assert "undecided" in told  # two pairs are too few
    assert "better" not in told

    for module, path in ((studies.gradient, "c"), (studies.defaults, "d"), (studies.failures, "f")):
        shortened(module, monkeypatch, 1, sets)
        arguments = ("--json", tmp_path / path, "--choices", a)
        call(module, monkeypatch, "--json", tmp_path / path, "--choices", tmp_path / "none", "--seeds", 0)
        assert not (tmp_path / path).exists()  # no run before the tuning of study A
        call(module, monkeypatch, *arguments)
        found = json.loads((tmp_path / path).read_text())["rows"]
        assert {row["factor"] for row in found} == {factor.name for factor in module.FACTORS}
        call(module, monkeypatch, "--json", tmp_path / path, "--summary")
        told = capsys.readouterr().out
        if path == "c":
            assert {t for row in found for t, *_ in row["shares"]} == {1, 2, 5, 10, 20}
            assert all(0 < share < 2 for row in found for _, share, _ in row["shares"])
            full = [row for row in found if row["floor"] == 1]
            assert {alpha for row in full for _, _, alpha in row["shares"]} == {1.0}
            assert "step 20" in told
        if path == "f":
            made = {row["imbalance"] for row in found if "projected" in row}
            assert made == {0.1, 0.01}
            assert "learned, projected" in told
            assert all(
                set(row["health"]) == set(studies.scratch_run.HEALTH) for row in found if row["head"] == "implicit"
            )


def test_networks_and_few_dimensions_are_run_in_small(studies, monkeypatch, tmp_path, capsys):
    sets = studies.scratch.SMALL
    monkeypatch.setitem(sets, "cifar10", replace(sets["cifar100"], tuned_on=None))
    shortened(studies.from_scratch, monkeypatch, 1, {"digits": 0, "cifar10": 0})
    a = tmp_path / "a.json"
    call(studies.from_scratch, monkeypatch, "--json", a)
    few, networks = studies.few_dimensions, studies.architectures
    data = {factor.data: few.narrow(sets["digits"], 2) for factor in few.FACTORS}  # four classes on a circle
    factors = tuple(replace(factor, seeds=1) for factor in few.FACTORS)
    monkeypatch.setattr(few, "STUDY", replace(few.STUDY, small=data, factors=factors))
    small = replace(sets["cifar10"], tuned_on="cifar10")
    data = {f"cifar10, {name}": replace(small, network=networks.NETWORKS[name]) for name in networks.OWN}
    factors = tuple(replace(factor, seeds=1) for factor in networks.FACTORS if factor.name in networks.OWN)
    monkeypatch.setattr(networks, "FACTORS", factors)
    monkeypatch.setattr(networks, "STUDY", replace(networks.STUDY, small=data, factors=factors))
    for module, runs, named in ((few, 12, "**d = 6**"), (networks, 8, "**vgg**")):
        path = tmp_path / module.__name__
        call(module, monkeypatch, "--json", path, "--choices", a, "--dry-run")
        assert f"{runs} runs left" in capsys.readouterr().out
        assert not path.exists()
        call(module, monkeypatch, "--json", path, "--choices", a)
        rows = json.loads(path.read_text())["rows"]
        assert len(rows) == runs
        for row in rows:
            tuned_on = module.STUDY.small[row["data"]].tuned_on
            head = studies.scratch.HEADS[row["head"]].tuned_as or row["head"]
            choice = studies.scratch.chosen(json.loads(a.read_text())["rows"], head, tuned_on)
            choice |= next(factor.change for factor in module.STUDY.factors if factor.name == row["factor"])
            assert {name: row[name] for name in choice} == choice
        call(module, monkeypatch, "--json", path, "--summary")
        assert named in capsys.readouterr().out


@pytest.mark.parametrize("name", ["densenet", "transformer", "efficientnet"])
def test_networks_of_torchvision(studies, name):
    pytest.importorskip("torchvision")
    network = studies.architectures.NETWORKS[name](3, signed=False)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, network.num_features)


def run_of(studies: SimpleNamespace, head: str = "implicit", **change: Any) -> Any:
    return replace(studies.scratch.Run("report", "centre", head, 3, rate=0.01, temperature=10.0), **change)


def test_a_seed_repeats_its_figures_and_its_images_for_all_heads(studies):
    data, device = studies.scratch.SMALL["cifar100"], torch.device("cpu")
    found = [studies.scratch_run.trained(run_of(studies, data="cifar100"), data, (1, 2)) for _ in range(2)]
    assert found[0]["nc1"] == found[1]["nc1"]
    first, second = (
        studies.scratch_run.loaders_of(run_of(studies, head), data, device) for head in ("fixed", "linear")
    )
    for (x, y), (z, w) in zip(first.train.epoch(1), second.train.epoch(1), strict=True):
        assert torch.equal(x, z)
        assert torch.equal(y, w)
    assert len(first.shown.labels) == 40
    assert len(first.train.labels) == 120
    assert torch.bincount(first.train.labels).tolist() == [30] * K
    networks = []
    for head in ("fixed", "linear", "learned"):
        torch.manual_seed(3)
        networks.append(studies.scratch_run.model_of(run_of(studies, head), data, first, device).backbone.state_dict())
    assert all(torch.equal(x, other[name]) for name, x in networks[0].items() for other in networks)


def test_tuning_uses_only_training_images(studies):
    trial = replace(run_of(studies), stage="tune", seed=100)
    source = made_up()
    for name in ("digits", "cifar100"):
        loaders = studies.scratch_run.loaders_of(trial, studies.scratch.SMALL[name], torch.device("cpu"))
        train, shown = ({x.numpy().tobytes() for x in part.images} for part in (loaders.train, loaders.shown))
        every = {x.tobytes() for x in source.train.images}
        assert train <= every
        assert shown <= every
        assert not train & shown
        assert len(shown) in (32, 40)


def test_axes_are_assigned_optimally_to_classes(studies):
    rng = torch.Generator().manual_seed(0)
    for _ in range(5):
        means = torch.randn(3, 5, generator=rng)
        frame = studies.scratch_run.assigned_axes(means)
        assert torch.equal(frame.T @ frame, torch.eye(3))
        cosines = torch.nn.functional.normalize(means, dim=1)
        best = max(
            sum(float(cosines[k, j]) for k, j in enumerate(axes)) for axes in itertools.permutations(range(5), 3)
        )
        assert float((cosines * frame.T).sum()) == pytest.approx(best, abs=1e-6)
        assert FixedETFHead(5, 3, initial=frame).weight.shape == (3, 5)


def test_the_share_is_that_of_the_path_through_the_solution(studies):
    torch.manual_seed(0)
    features, labels = torch.randn(32, 8), torch.arange(32) % K
    head = ImplicitETFHead(8, K, 10.0)
    for _ in range(5):
        head(torch.randn(32, 8) + 3 * torch.eye(8)[labels], labels)
    before = {name: x.clone() for name, x in head.state_dict().items()}
    shares = []
    for floor in (0.5, 1e-3, 2e-3):
        head.running.steps.fill_(10_000)
        head.running.floor = floor
        shares.append(studies.scratch_run.share_of_solution(head, features, labels))
    assert shares[0] > shares[2] > shares[1] > 0
    assert shares[2] / shares[1] == pytest.approx(2, rel=0.05)  # for small α the share is proportional to α
    assert head.gradient
    head.running.steps.copy_(before["running.steps"])
    assert all(torch.equal(x, before[name]) for name, x in head.state_dict().items())

    # The gradient with the path against finite differences of the loss in float64.
    head, f = ImplicitETFHead(8, K, 10.0).double(), features.double().requires_grad_()
    head.running.floor = 0.5
    head(f.detach() + 1, labels)
    step, parts = torch.randn(32, 8, dtype=torch.float64), []
    for through in (True, False):
        head.gradient = through
        loss = torch.nn.functional.cross_entropy(head(f, labels, update=False), labels)
        parts.append(float((torch.autograd.grad(loss, f)[0] * step).sum()))
    ends = [
        float(torch.nn.functional.cross_entropy(head(f.detach() + e * step, labels, update=False), labels))
        for e in (1e-5, -1e-5)
    ]
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(parts[0], rel=1e-3)  # W moves with the features
    assert parts[0] != pytest.approx(parts[1], rel=1e-2)


def test_factors_change_their_settings(studies, monkeypatch):
    data, device = studies.scratch.SMALL["digits"], torch.device("cpu")
    seen: list[set[int]] = []
    whole = studies.scratch_run.training_loss

    def spied(kind: str, logits: Any, labels: Any, *others: Any) -> Any:
        seen.append(set(labels.tolist()))
        return whole(kind, logits, labels, *others)

    monkeypatch.setattr(studies.scratch_run, "training_loss", spied)
    studies.scratch_run.trained(run_of(studies, absent=2), data, (2,))
    half = len(seen) // 2
    assert set().union(*seen[:half]) == {0, 1}
    assert set().union(*seen[half:]) == {0, 1, 2, 3}

    for change, expected in (({"imbalance": 0.1}, [40, 19, 9, 4]), ({"noise": 0.4}, None)):
        labels = studies.scratch_run.loaders_of(run_of(studies, **change), data, device).train.labels
        if expected:
            assert torch.bincount(labels).tolist() == expected
        else:
            assert int((labels != torch.from_numpy(made_up().train.labels)).sum()) == 64

    loaders = studies.scratch_run.loaders_of(run_of(studies), data, device)
    aligned = studies.scratch_run.model_of(run_of(studies, start="aligned"), data, loaders, device)
    assert int(aligned.head.running.steps) == 10
    polar = studies.scratch_run.model_of(run_of(studies, start="feature-polar"), data, loaders, device)
    assert int(polar.head.running.steps) == 0
    means = studies.scratch_run.class_means(polar.backbone, loaders)[2].double()
    assert float(torch.trace(polar.head.weight.double() @ means.T)) > 0.9 * float(
        math.sqrt(K / (K - 1)) * torch.linalg.matrix_norm(means, "nuc")
    )
    flows = studies.scratch_run.flows
    assert [flows("first fifth", p) for p in (0, 0.19, 0.2, 0.9)] == [True, True, False, False]
    assert [flows("last four fifths", p) for p in (0, 0.19, 0.2, 0.9)] == [False, False, True, True]
    assert flows("on", 0)
    assert not flows("off", 0.5)
    signed = studies.scratch_run.model_of(run_of(studies, signed=True), data, loaders, device)
    features = [studies.scratch_run.class_means(m.backbone, loaders)[0] for m in (signed, polar)]
    assert features[0].min() < 0
    assert features[1].min() == 0


def test_a_run_that_diverges_ends_at_chance(studies):
    found = studies.scratch_run.trained(run_of(studies, "linear", rate=1e30), studies.scratch.SMALL["digits"], (1, 2))
    assert found["diverged"]
    assert found["accuracy"] == 1 / K


def test_small_and_full_scale_are_planned(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    modules = {name: importlib.import_module(name) for name in NAMES}
    scratch, ceilings = modules["scratch"], {"from_scratch": 1.8, "gradient": 0.7, "defaults": 0.9, "failures": 0.4}
    ceilings |= {"architectures": 0.3, "few_dimensions": 0.3}
    for name, hours in ceilings.items():
        study = modules[name].STUDY
        sets = {**scratch.SMALL, **study.small}
        runs = list(scratch.plan(study, sets, []))
        assert len({run.key() for run in runs}) == len(runs)
        later = getattr(modules[name], "MORE", {})  # heads without a ceiling: departure 15 of the protocol
        within = [run for run in runs if run.head not in later.get(run.data, ())]
        expected = sum(scratch.seconds_of(study, run, sets[run.data]) for run in within) / 3600
        assert expected < 2.1 * hours  # on two cores; A has its factors in the order of their importance
        full = list(scratch.plan(study, {**scratch.FULL, **study.full}, [], 2))
        assert sum(run.stage == "report" for run in full) == 2 * sum(run.stage == "report" for run in runs)
    for data in (*scratch.SMALL.values(), *scratch.FULL.values()):
        assert len(data.grid) == 3
        assert data.looks()[-1] == data.settings.epochs


def test_choices_and_targets_follow_the_protocol(studies):
    def row(rate: float, accuracy: float, nc1: float | None = None, data: str = "digits") -> dict[str, Any]:
        trial = replace(run_of(studies, "learned", data=data), stage="tune", seed=100, rate=rate)
        return {**vars(trial), "accuracy": accuracy, "nc1": [nc1]}

    scratch, told = studies.scratch, studies.scratch_tables
    rows = [row(0.03, 0.9), row(0.003, 0.9), row(0.01, 0.8)]
    assert scratch.chosen(rows, "learned", "digits") == {"rate": 0.003, "temperature": 10.0}  # a tie
    free = [row(0.003, 1.0, 0.5, "ufm-10"), row(0.01, 1.0, 0.1, "ufm-10"), row(0.03, 1.0, None, "ufm-10")]
    assert scratch.chosen(free, "learned", "ufm-10")["rate"] == 0.01
    assert scratch.settled(rows, scratch.SMALL, "learned", "digits")["rate"] == 0.003  # there is no larger rate
    assert scratch.settled(rows[:2], scratch.SMALL, "learned", "digits") == {}

    way = [{"seed": 0, "at": [1, 2], "test": [0.4, 0.6], "nc1": [None, 0.9]}]
    assert told.reached(way, "test", 0.6) == {0: 2.0}
    assert told.reached(way, "nc1", 1.0) == {0: 2.0}
    assert told.reached(way, "test", 0.7) == {0: math.inf}
    assert told.earlier({s: 1.0 for s in range(5)}, {s: 3.0 for s in range(5)}) == "+2.0 [+2.0, +2.0] better"
    assert told.earlier({0: 1.0, 1: math.inf, 2: math.inf}, {0: math.inf, 1: 2.0, 2: math.inf}) == (
        "1 earlier, 1 level, 1 later"
    )


def test_the_grid_is_extended_while_the_best_rate_is_at_its_end(studies, monkeypatch):
    monkeypatch.setattr(studies.scratch, "RATES", (0.001, 0.003, 0.01, 0.03, 0.1))
    trial = replace(run_of(studies, "learned"), stage="tune", seed=100)

    def asked(best: float, *rates: float) -> set[float]:
        rows = [{**vars(replace(trial, rate=r)), "accuracy": 1 - abs(math.log(r / best)), "nc1": []} for r in rates]
        return {run.rate for run in studies.scratch.tuning(rows, studies.scratch.SMALL, "learned", "digits")} - {*rates}

    grid = (0.003, 0.01, 0.03)
    assert asked(0.01, *grid) == set()
    assert asked(0.03, *grid) == {0.1}
    assert asked(0.001, *grid) == {0.001}
    assert asked(0.1, *grid, 0.1) == set()


def test_lowest_losses_of_free_features(studies, monkeypatch, tmp_path, capsys):
    floor = studies.relu_floor
    for K_, tau in ((3, 2.0), (5, 5.0)):
        margin = K_ / (K_ - 1)
        best = math.log1p((K_ - 1) * math.exp(-tau * margin))
        assert floor.lowest(K_, tau, "random", True, True, 8) == pytest.approx(best, rel=1e-6)
        axes = math.log1p((K_ - 1) * math.exp(-tau * math.sqrt(margin)))  # h = τ e_k
        assert floor.lowest(K_, tau, "canonical", False, False, 8) == pytest.approx(axes, rel=1e-6)
        assert floor.lowest(K_, tau, "random", False, False, 8) > axes
    monkeypatch.setattr(floor, "TEMPERATURES", (5.0,))
    monkeypatch.setattr(floor, "STARTS", 1)
    for _ in range(2):  # the second time from the file
        call(floor, monkeypatch, "--classes", 3, "--json", tmp_path / "rows.json")
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == 8
    assert "| 3 | 5 |" in capsys.readouterr().out


def test_sizes_are_measured_and_their_growth_fitted(studies, monkeypatch, tmp_path, capsys):
    scale = studies.scale
    monkeypatch.setattr(scale, "steps_of", lambda _: 2)
    found = scale.measured(8, 1, "cpu")
    assert len(found["milliseconds"]) == 2
    assert min(found["milliseconds"]) > 0
    assert found["bytes"] > 0
    rows = [
        {"K": K_, "d": K_, "threads": 1, "milliseconds": [K_**3.0] * 3, "bytes": K_**2, "fallbacks": 0}
        for K_ in (500, 1000)
    ]
    assert scale.exponents(rows, 1) == "time K^3.00, memory K^2.00"
    rows.append({"K": 2000, "threads": 1, "failed": -9})
    assert "ended with -9" in scale.tables(rows, [])

    def probe(command: list[str], **_: Any) -> Any:
        answer = json.dumps({"d": 512, "milliseconds": [1.0], "bytes": 1, "fallbacks": 0})
        return SimpleNamespace(returncode=0 if command[3] == "100" else -9, stdout=answer)

    monkeypatch.setattr(scale.subprocess, "run", probe)
    path = tmp_path / "rows.json"
    call(scale, monkeypatch, "--json", path, "--dry-run", "--classes", 100, 200)
    assert "4 sizes left" in capsys.readouterr().out
    for _ in range(2):
        call(scale, monkeypatch, "--json", path, "--classes", 100, 200)
    found = json.loads(path.read_text())["rows"]
    assert [(row["K"], row["threads"], row.get("failed")) for row in found] == [
        (100, 1, None),
        (100, 2, None),
        (200, 1, -9),
        (200, 2, -9),
    ]
