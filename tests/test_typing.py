"""The installed package under a user's type checker: names resolve, heads keep their types, misspellings are errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RIGHT = """
import torch
from nearest_etf import Classifier, ImplicitETFHead, LinearHead, NeuralCollapseMeter, Solution
from nearest_etf import __version__, nearest_etf, solve
from nearest_etf.export import OnnxClassifier, export_onnx
from nearest_etf.reference import NearestETF, nearest_etf as reference_nearest_etf, neural_collapse

model = Classifier(torch.nn.Flatten(), ImplicitETFHead(16, 4, temperature="learned", averaging="class"))
health: dict[str, float] = model.head.solution_health()
model.head.set_means(torch.zeros(4, 16))
logits: torch.Tensor = model(torch.zeros(2, 16), torch.tensor([0, 1]))
meter = NeuralCollapseMeter(16, 4)
meter.update(torch.zeros(2, 16), torch.tensor([0, 1]))
solution: Solution = solve(torch.eye(16, 4), initial="random")
gap: float = solution.optimality_gap
frame: torch.Tensor = nearest_etf(torch.eye(16, 4))
theirs: NearestETF = reference_nearest_etf([[1.0, 0.0], [0.0, 1.0]], method="svd")
weight: torch.Tensor = Classifier(torch.nn.Flatten(), LinearHead(16, 4)).head.weight
report = export_onnx(model, "model.onnx", image_shape=(4, 4, 1), mean=[0.5], std=[0.25])
answer = OnnxClassifier("model.onnx").predict([[0.0]])
version: str = __version__
"""
WRONG = """
from nearest_etf import ImplicitEtfHead
from nearest_etf.torchport import NeuralColapseMeter
from nearest_etf.reference import nearest_eft
from nearest_etf.export import OnyxClassifier
import torch
from nearest_etf import Classifier, LearnedHead
Classifier(torch.nn.Flatten(), LearnedHead(16, 4)).head.solution_health()
"""


def checked(tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "mine.py"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_right_code_is_clean_and_misspellings_fail(tmp_path: Path) -> None:
    done = checked(tmp_path, RIGHT)
    assert done.returncode == 0, done.stdout
    done = checked(tmp_path, WRONG)
    for name in ("ImplicitEtfHead", "NeuralColapseMeter", "nearest_eft", "OnyxClassifier"):
        assert f'has no attribute "{name}"' in done.stdout, done.stdout
    assert "mine.py:8: error" in done.stdout  # a learned head has no solver
