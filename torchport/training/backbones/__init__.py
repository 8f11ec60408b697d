"""Networks from images (N, C, H, W) to features (N, d); each has its d as `num_features`.

build.py      a network by name, and the images that it is for (view.py)
foreign.py    networks of torchvision and timm          own.py   networks of a function of one's own
small.py, resnet.py, vgg.py, free.py                    the networks of this project
"""
