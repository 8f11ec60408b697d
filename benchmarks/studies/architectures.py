"""Study G: do the comparisons of training from scratch agree on other networks?

    NEAREST_ETF_DATA=data python benchmarks/studies/architectures.py --minutes 40   # after A; repeat until none is left
    python benchmarks/studies/architectures.py --dry-run
    python benchmarks/studies/architectures.py --summary > tables.md

docs/protocol.md has the rules. Four heads with their choices of study A for CIFAR-10 train on 4,000 CIFAR-10 images for
5 epochs (full scale: all images, 30 epochs). The networks are the small ResNet of study A, a narrow VGG-11, and, with
torchvision, a small DenseNet, a small vision transformer and EfficientNet-B0, all with random weights. Two calls with
different `--seeds` and `--json` may run in parallel.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace

from scratch import FOUR, SMALL, Data, Factor, Rows, SmallResNet, Study, conduct  # type: ignore[import-not-found]
from scratch_tables import collapse, comparison, groups  # type: ignore[import-not-found]
from torch import nn

from nearest_etf.torchport.training.backbones.features import with_num_features

SIDE = 32


def densenet(channels: int, *, signed: bool = False) -> nn.Module:
    """Three dense blocks of four layers, 12 channels each."""
    from torchvision.models import DenseNet

    return bare(DenseNet(12, (4, 4, 4), 24, num_classes=1), "classifier", channels)


def transformer(channels: int, *, signed: bool = False) -> nn.Module:
    """Four layers of width 64 on patches of 4×4 pixels."""
    from torchvision.models import VisionTransformer

    network = VisionTransformer(SIDE, 4, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=1)
    return bare(network, "heads", channels)


def efficientnet(channels: int, *, signed: bool = False) -> nn.Module:
    from torchvision.models import efficientnet_b0

    return bare(efficientnet_b0(num_classes=1), "classifier", channels)


def bare(network: nn.Module, classifier: str, channels: int) -> nn.Module:
    """The network without its classifier, for images of 32 pixels."""
    setattr(network, classifier, nn.Identity())
    return with_num_features(network, type(network).__name__, (SIDE, SIDE, channels))


NETWORKS: dict[str, Callable[..., nn.Module] | None] = {  # None: that of the settings
    "resnet": SmallResNet,
    "vgg": None,
    "densenet": densenet,
    "transformer": transformer,
    "efficientnet": efficientnet,
}
OWN = ("resnet", "vgg")  # without torchvision
STEP_SECONDS = {"resnet": SMALL["cifar10"].step_seconds, "vgg": 0.087}  # at small scale; the others: not measured


def sets(scale: str) -> dict[str, Data]:
    """CIFAR-10 with the settings and choices of study A, but fewer images, for each of the networks."""
    small, cifar10 = scale == "small", SMALL["cifar10"]
    width, epochs = (16, 5) if small else (64, 30)
    settings = replace(cifar10.settings, epochs=epochs, backbone="vgg11", width=width)
    base = replace(cifar10, settings=settings, tuned_on="cifar10", images=4000 if small else 0)
    base = base if small else replace(base, test=0, measured=0)
    seconds = STEP_SECONDS if small else {}
    return {
        f"cifar10, {name}": replace(base, network=network, step_seconds=seconds.get(name, 0.0))
        for name, network in NETWORKS.items()
    }


FACTORS = tuple(Factor(name, FOUR, 5, data=f"cifar10, {name}") for name in NETWORKS)


def tables(rows: Rows) -> str:
    """By network: accuracies, differences to learned and linear, and epochs to the targets of CIFAR-10."""
    parts = []
    for factor in dict.fromkeys(row["factor"] for row in rows):
        by_head = groups(rows, lambda row: row["head"], factor=factor)
        targets = SMALL["cifar10"].targets
        parts += [f"**{factor}**", *(comparison(by_head, opponent) for opponent in ("learned", "linear"))]
        parts += [collapse(by_head, "learned", targets)]
    return "\n\n".join(parts)


STUDY = Study(__doc__, "architectures.json", FACTORS, tables, small=sets("small"), full=sets("full"))


def main() -> None:
    if importlib.util.find_spec("torchvision") is None:
        print(f"torchvision is not installed: {', '.join(OWN)} alone")
        conduct(replace(STUDY, factors=tuple(factor for factor in FACTORS if factor.name in OWN)))
    else:
        conduct(STUDY)


if __name__ == "__main__":
    main()
