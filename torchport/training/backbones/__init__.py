"""Networks from images (N, C, H, W) to features (N, d); each has its d as `num_features`.

build.py      a network by name            foreign.py   networks of torchvision and timm
small.py, resnet.py, vgg.py, free.py       the networks of this project
"""
