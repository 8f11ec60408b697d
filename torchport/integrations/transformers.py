"""Heads on models of Transformers (tested with 5.24): images and text, `Trainer`, and safetensors.

Examples
--------
>>> import torch
>>> from transformers import ViTConfig
>>> vit = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
...                 patch_size=4, num_channels=1)
>>> model = ETFForClassification(ETFConfig(vit, num_labels=3, head="implicit"))
>>> out = model(pixel_values=torch.randn(6, 1, 8, 8), labels=torch.tensor([0, 1, 2, 0, 1, 2]))
>>> out.logits.shape, out.loss.ndim
(torch.Size([6, 3]), 0)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from ...common.errors import nearest_name
from ..heads import ClassMeanHead, FixedETFHead, Head, ImplicitETFHead, LearnedHead, LinearHead, TightFrameHead

HEADS: dict[str, type[Head]] = {
    kind.kind: kind for kind in (LinearHead, LearnedHead, FixedETFHead, ImplicitETFHead, ClassMeanHead, TightFrameHead)
}
POOLING = ("pooler", "first", "mean")


class ETFConfig(PretrainedConfig):
    """The configuration of `ETFForClassification`.

    Parameters
    ----------
    backbone : PretrainedConfig or dict
        Configuration of any model that `AutoModel` supports.
    head : {"linear", "learned", "fixed", "implicit", "class-mean", "tight-frame"}
    head_settings : dict, optional
        Arguments of that head, as JSON values: `{"temperature": 16.0, "formulation": "gauge-free"}`.
    pooling : {"pooler", "first", "mean"}
        The feature vector: the output of the backbone's pooler, the first token, or the mean over the tokens in the
        attention mask. With "first" and "mean" an existing pooler gets no gradient, and `DistributedDataParallel` needs
        `find_unused_parameters=True`.
    settings
        Arguments of `PretrainedConfig`: `num_labels`, `id2label`, …

    Raises
    ------
    ValueError
        If `head` or `pooling` is unknown.
    """

    model_type = "nearest-etf"
    has_no_defaults_at_init = True

    def __init__(
        self,
        backbone: PretrainedConfig | dict[str, Any] | None = None,
        head: str = "implicit",
        head_settings: dict[str, Any] | None = None,
        pooling: str = "pooler",
        **settings: Any,
    ) -> None:
        for name, value, known in (("head", head, HEADS), ("pooling", pooling, POOLING)):
            if value not in known:
                raise ValueError(nearest_name(name, value, known))
        if isinstance(backbone, dict):
            backbone = AutoConfig.for_model(**backbone)
        self.backbone = backbone
        self.head, self.head_settings, self.pooling = head, head_settings or {}, pooling
        super().__init__(**settings)


class ETFForClassification(PreTrainedModel):
    """A model of Transformers with a head of this package: `labels` go to the loss and to the head's class means.

    Parameters
    ----------
    config : ETFConfig

    Attributes
    ----------
    backbone : PreTrainedModel
        With random weights; for pretrained ones, set `model.backbone = AutoModel.from_pretrained(…)`.
    head : Head

    Notes
    -----
    With `Trainer(label_smoothing_factor=…)` or a `compute_loss_func` the model does not receive the labels, so the head
    cannot update its class means: put the loss into a subclass instead. In half precision the whole head stays in
    float32.
    """

    config_class = ETFConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True  # of the backbone only
    accepts_loss_kwargs = False  # the loss is a mean over the batch, which Trainer then averages over microbatches
    _keep_in_fp32_modules_strict = {"head"}  # noqa: RUF012 (the base class has a set)

    def __init__(self, config: ETFConfig) -> None:
        super().__init__(config)
        if config.backbone is None:
            raise ValueError("backbone is None; expected the configuration of a model, as in ETFConfig(ViTConfig(…)).")
        self.backbone = AutoModel.from_config(config.backbone)
        self.main_input_name = self.backbone.main_input_name
        sizes = getattr(config.backbone, "hidden_sizes", None)  # of convolutional networks
        num_features = sizes[-1] if sizes else config.backbone.hidden_size
        num_labels: Any = config.num_labels
        self.head: Any = HEADS[config.head](num_features, num_labels, **config.head_settings)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        update: bool = True,
    ) -> SequenceClassifierOutput:
        """Logits (N, K), and with labels (N,) the mean cross-entropy.

        Raises
        ------
        ValueError
            If the backbone has no output for this pooling, or as `Head.forward`.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
            "pixel_values": pixel_values,
        }
        outputs = self.backbone(**{name: value for name, value in given.items() if value is not None})
        logits = self.head(self._pooled(outputs, attention_mask), labels, update)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _pooled(self, outputs: Any, mask: Tensor | None) -> Tensor:
        """The features (N, d)."""
        how = self.config.pooling
        tokens = outputs.last_hidden_state
        if how == "pooler":
            if getattr(outputs, "pooler_output", None) is None:
                raise ValueError(f"{type(self.backbone).__name__} has no pooler: use pooling='first' or 'mean'.")
            return outputs.pooler_output.flatten(1)
        if tokens.ndim != 3:
            raise ValueError(
                f"the last hidden state has shape {tuple(tokens.shape)}; expected (N, tokens, d): use pooling='pooler'."
            )
        if how == "first":
            return tokens[:, 0]
        weights = tokens.new_ones(tokens.shape[:2]) if mask is None else mask.to(tokens.dtype)
        return (weights[:, None] @ tokens)[:, 0] / weights.sum(1, keepdim=True)

    def save_pretrained(self, *arguments: Any, **settings: Any) -> None:
        """As `PreTrainedModel.save_pretrained`.

        Raises
        ------
        ValueError
            If the head has pinned rows, or not the configuration's number of classes: it could not be rebuilt from the
            configuration.
        """
        if self.head.pinned is not None or self.head.num_classes != self.config.num_labels:
            raise ValueError(
                f"the head has {self.head.num_classes} classes and {len(self.head.pinned or [])} pinned rows; expected "
                f"the configuration's {self.config.num_labels} and none: set config.num_labels after add_classes, and "
                "save a model with pinned rows by integrations.hub.save_pretrained."
            )
        super().save_pretrained(*arguments, **settings)


AutoConfig.register(ETFConfig.model_type, ETFConfig, exist_ok=True)
for auto in (AutoModelForImageClassification, AutoModelForSequenceClassification):
    auto.register(ETFConfig, ETFForClassification, exist_ok=True)
