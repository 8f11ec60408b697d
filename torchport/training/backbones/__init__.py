"""Networks from images (N, C, H, W) to features (N, d); each has its d as `num_features`.

build.py      a network by name, and its preprocessing (view.py)
foreign.py    networks of torchvision and timm          own.py   networks from your own function
small.py, resnet.py, vgg.py, free.py                    the networks of this project
"""
