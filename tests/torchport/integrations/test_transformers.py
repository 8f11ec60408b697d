"""Heads on models of Transformers: its Trainer against a plain loop, safetensors, meta construction, half precision."""

from __future__ import annotations

import copy
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from nearest_etf.reference import etf_error
from nearest_etf.torchport import ImplicitETFHead, LinearHead

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    PretrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    Trainer,
    TrainingArguments,
    ViTConfig,
)

from nearest_etf.torchport.integrations.transformers import HEADS, ETFConfig, ETFForClassification

EXAMPLES = Path(__file__).parents[3] / "examples"
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VIT: dict[str, Any] = {**SMALL, "image_size": 8, "patch_size": 4, "num_channels": 1}


def images(size: int = 16, K: int = 3, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % K
    return {
        "pixel_values": torch.randn(size, 1, 8, 8, generator=generator) + labels[:, None, None, None],
        "labels": labels,
    }


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def vision(head: str = "implicit", **settings: Any) -> ETFForClassification:
    torch.manual_seed(0)
    return ETFForClassification(ETFConfig(ViTConfig(**VIT), num_labels=3, head=head, **settings))


def language(pooling: str = "pooler", head: str = "implicit") -> ETFForClassification:
    torch.manual_seed(0)
    bert = BertConfig(**SMALL, vocab_size=50, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return ETFForClassification(ETFConfig(bert, num_labels=3, head=head, pooling=pooling))


def step(model: ETFForClassification, seed: int) -> Tensor:
    """The loss of a batch, which updates the class means."""
    loss = model.train()(**images(seed=seed)).loss
    assert loss is not None
    return loss


def assert_equal(found: nn.Module, expected: nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    different = [
        name for name in ours if ours[name].dtype != theirs[name].dtype or not torch.equal(ours[name], theirs[name])
    ]
    assert different == []


@pytest.mark.parametrize("accumulate", [1, 2])
def test_trainer_agrees_with_a_plain_loop(tmp_path: Path, accumulate: int) -> None:
    columns = images(32)
    model, expected = vision(), vision()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    for index, rows in enumerate(torch.arange(32).split(8)):
        (expected.train()(**{name: x[rows] for name, x in columns.items()}).loss / accumulate).backward()
        if (index + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    settings = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=1,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=accumulate,
        train_sampling_strategy="sequential",
        max_grad_norm=0,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    if accumulate == 2:
        model.activation_checkpointing_enable()  # of the backbone only
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    constant = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 1.0)
    trainer = Trainer(
        model, settings, train_dataset=Rows(columns), eval_dataset=Rows(images(9)), optimizers=(sgd, constant)
    )
    trainer.train()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert model.head.running.steps == 4
    before = copy.deepcopy(model.head.state_dict())
    assert trainer.evaluate()["eval_loss"] > 0
    assert all(torch.equal(value, before[name]) for name, value in model.head.state_dict().items())


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_model_continues_bit_by_bit(tmp_path: Path, head: str) -> None:
    model = vision(head, head_settings={} if head == "linear" else {"temperature": 7.0})
    for seed in range(2):
        step(model, seed)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    both: Any = ETFForClassification.from_pretrained(tmp_path, output_loading_info=True)
    loaded, found = both  # built on the meta device
    assert not any(found.values())
    assert_equal(loaded, model)
    assert not any(value.is_meta for value in loaded.state_dict().values())
    assert loaded.head.temperature == model.head.temperature
    assert isinstance(loaded.head.weight, nn.Parameter) == isinstance(loaded.head, LinearHead)
    pixels = images(seed=7)["pixel_values"]
    assert torch.equal(loaded.eval()(pixel_values=pixels).logits, model.eval()(pixel_values=pixels).logits)
    for seed in (2, 3):  # after two steps, the third one has a proximal point
        assert torch.equal(step(loaded, seed), step(model, seed))
    assert_equal(loaded, model)


def test_half_precision_keeps_the_head_in_float32(tmp_path: Path) -> None:
    model = vision()
    step(model, 0)
    model.save_pretrained(tmp_path)
    half = ETFForClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.backbone.dtype == torch.bfloat16
    for name, value in model.head.state_dict().items():
        assert torch.equal(half.head.state_dict()[name].to(value.dtype), value), name
    batch = images(seed=1)
    out = half.train()(pixel_values=batch["pixel_values"].bfloat16(), labels=batch["labels"])
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert half.head.running.steps == 2
    for name, value in model.head.state_dict().items():  # counters, which this loader casts, are integers again
        assert half.head.state_dict()[name].dtype == value.dtype, name
    assert etf_error(half.head.weight.double().numpy()) < 1e-6


def test_the_config_is_plain_json_and_registered_with_autoclasses(tmp_path: Path) -> None:
    model = language(head="tight-frame")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["head"], config["backbone"]["model_type"]) == (
        "nearest-etf",
        "tight-frame",
        "bert",
    )
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_equal(loaded, model)
    again = ETFConfig.from_pretrained(tmp_path)
    assert again.backbone is not None
    assert again.backbone.to_dict() == model.config.backbone.to_dict()
    assert (again.head, again.pooling, again.num_labels) == ("tight-frame", "pooler", 3)


@pytest.mark.parametrize("pooling", ["pooler", "first", "mean"])
def test_text_of_any_length_trains(pooling: str) -> None:
    model = language(pooling)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 3
    tokens = 1 + 16 * labels[:, None] + torch.randint(0, 16, (24, 10), generator=generator)
    mask = (torch.arange(10) < torch.randint(3, 11, (24, 1), generator=generator)).long()
    losses = []
    for _ in range(12):
        out = model(input_ids=tokens, attention_mask=mask, labels=labels)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    assert losses[-1] < 0.5 * losses[0]
    found = model.eval()(input_ids=tokens, attention_mask=mask).logits
    assert (found.argmax(1) == labels).float().mean() > 0.9
    other = torch.where(mask > 0, tokens, 49)  # masked tokens do not count
    torch.testing.assert_close(model(input_ids=other, attention_mask=mask).logits, found)


def test_convolutional_backbones() -> None:
    resnet = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    model = ETFForClassification(ETFConfig(resnet, num_labels=3))
    assert model.head.num_features == 12
    step(model, 0).backward()
    with pytest.raises(ValueError, match="use pooling='pooler'"):
        ETFForClassification(ETFConfig(resnet, num_labels=3, pooling="mean"))(**images())


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown head 'implict': did you mean 'implicit'"):
        ETFConfig(ViTConfig(), head="implict")
    with pytest.raises(ValueError, match="unknown pooling 'max'"):
        ETFConfig(ViTConfig(), pooling="max")
    with pytest.raises(ValueError, match="backbone is None"):
        ETFForClassification(ETFConfig())
    model = vision()
    model.head.add_classes(1)
    with pytest.raises(ValueError, match=r"4 classes.*configuration's 3"):
        model.save_pretrained(tmp_path)
    model.config.num_labels = 4
    model.save_pretrained(tmp_path)
    assert ETFForClassification.from_pretrained(tmp_path).head.num_classes == 4
    model.backbone.pooler = None
    with pytest.raises(ValueError, match=r"ViTModel has no pooler: use pooling='first'"):
        model(**images())


class Own(PreTrainedModel):
    """A foreign model that contains a head."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.body, self.head = nn.Linear(8, 8), ImplicitETFHead(8, 3)
        self.post_init()

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.body(x), labels), labels)


def test_a_head_in_a_foreign_model_continues_bit_by_bit(tmp_path: Path) -> None:
    model = Own(PretrainedConfig())
    batches = [(torch.randn(12, 8), torch.arange(12) % 3) for _ in range(3)]
    for batch in batches[:2]:
        model.train()(*batch)
    model.save_pretrained(tmp_path)
    loaded = Own.from_pretrained(tmp_path)
    assert torch.equal(loaded.train()(*batches[2]), model(*batches[2]))
    assert_equal(loaded, model)


@pytest.mark.parametrize("script", ["transformers_image", "transformers_text"])
def test_the_examples_run(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--steps", "40"])
    names = runpy.run_path(str(EXAMPLES / f"{script}.py"))
    assert names["accuracy"] > 0.5
    if script == "transformers_image":
        assert names["same"]
        assert names["loaded"].head.running.steps == 40
    else:
        assert names["collapse"].nc2 < 1e-6
