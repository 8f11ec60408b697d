"""The training system around the layer: recipes, data sets, backbones, and one loop from top to bottom (`train.py`).

    settings.py    everything that defines a run         data/       official files to batches on the device
    train.py       the loop                              backbones/  images to features
    checkpoint.py  run folder to model, and back         recipes/    one TOML file per experiment
    measure.py     neural collapse of a finished run     report/     a page about several runs

The layer itself never imports this package.
"""
