"""The training system around the layer: recipes, data sets, backbones, and one loop from top to bottom (`train.py`).

    train.py      the loop                               run/         settings, and run folders
    model.py      a model from settings or a checkpoint  data/        from official files to batches on the device
    evaluate.py   the one evaluation pass                backbones/   networks from images to features
    measure.py    neural collapse of a finished run      report/      a page that compares runs
    sweep.py      several heads and seeds                recipes/     one TOML file per experiment

The commands are `etf_train.py`, `etf_measure.py` and `etf_report.py`. The layer itself never imports this package.
"""
