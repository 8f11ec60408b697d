"""Export of timm's families of networks: one small model of each, with random weights, in float32 or float16.

    python benchmarks/export_families.py [--models vit_tiny_patch16_224 …] [--precision fp32]

`export_onnx` exports each with a learned head, checks it against PyTorch at batch 1, 7 and 64, and the file is deleted.
The table has the reasons of refusals. Needs timm (and so torchvision); networks have no classifier, as in
`etf-train --backbone timm:NAME`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nearest_etf.export import ExportError, export_onnx
from nearest_etf.torchport import Classifier, LearnedHead

# One small network of each file of timm.models, if there is a small one.
MODELS = (
    "botnet26t_256 caformer_s18 cait_xxs24_224 coat_lite_tiny coatnet_pico_rw_224 "
    "convit_tiny convmixer_768_32 convnext_atto convnextv2_atto crossvit_tiny_240 cspresnet50 darknet53 "
    "davit_tiny deit3_small_patch16_224 deit_tiny_distilled_patch16_224 densenet121 dla46_c dpn48b "
    "edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientnet_lite0 efficientvit_b0 "
    "efficientvit_m0 ese_vovnet19b_slim_dw eva02_tiny_patch14_224 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny "
    "gernet_s ghostnet_050 gmlp_ti16_224 halonet26t hardcorenas_a hgnetv2_b0 hiera_tiny_224 hrnet_w18_small "
    "inception_next_atto inception_v3 lambda_resnet26t lcnet_035 levit_128s mambaout_femto "
    "maxvit_rmlp_pico_rw_256 mixer_s32_224 mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small_035 "
    "mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small nf_resnet26 nfnet_l0 "
    "pit_ti_224 poolformer_s12 pvt_v2_b0 rdnet_tiny regnetx_002 regnety_002 repghostnet_050 repvgg_a0 repvit_m0_9 "
    "res2net50_14w_8s resmlp_12_224 resnest14d resnet10t resnext50_32x4d resnetv2_18 rexnet_100 selecsls42 "
    "sequencer2d_s seresnet18 shvit_s1 skresnet18 starnet_s1 swin_s3_tiny_224 swin_tiny_patch4_window7_224 "
    "swinv2_cr_tiny_ns_224 swinv2_tiny_window8_256 tiny_vit_5m_224 tinynet_e tnt_s_legacy_patch16_224 tresnet_m "
    "twins_svt_small vgg11 visformer_tiny vit_relpos_small_patch16_224 vit_tiny_patch16_224 volo_d1_224 "
    "xception41 xcit_nano_12_p16_224"
)


def tried(name: str, precision: Literal["fp32", "fp16", "int8"]) -> str:
    """The result of the export of a network: "exported", or the reason of the refusal."""
    import timm

    torch.manual_seed(0)
    backbone = timm.create_model(name, pretrained=False, num_classes=0).eval()
    channels, height, width = backbone.default_cfg["input_size"]
    with torch.no_grad():
        num_features = backbone(torch.zeros(1, channels, height, width)).shape[1]
    images = np.random.default_rng(0).integers(0, 256, (65, height, width, channels), np.uint8)
    model = Classifier(backbone, LearnedHead(num_features, 10, temperature=5.0))
    how: dict[str, Any] = {"image_shape": (height, width, channels), "mean": [0.5] * channels, "std": [0.25] * channels}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            export_onnx(model, path, **how, check_images=images[:8], precision=precision)
        except ExportError as error:
            return f"refused: {str(error).replace(str(path), 'it')}"
    return "exported"


def main() -> None:
    """Print the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS.split(), metavar="NAME")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| network | seconds | in " + given.precision + " |\n|---|---|---|", flush=True)
    for name in given.models:
        start = time.perf_counter()
        end = tried(name, given.precision)
        print(f"| {name} | {time.perf_counter() - start:.0f} | {end} |", flush=True)


if __name__ == "__main__":
    main()
