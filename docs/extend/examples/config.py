"""SimCLR on gratings, judged by the nearest class mean.

python -m jaxequi.main --config=docs/extend/examples/config.py
"""

from configs import common

VARIANTS = {"gratings": {}}


def get_config(arg: str | None = None):
    """Build the config; there is one variant."""
    common.variant(arg, VARIANTS, {})
    config = common.base()
    config.method = {"name": "simclr", "projector": "16-16"}
    config.backbone = {"name": "resnet", "architecture": "resnet10", "width": 4, "stem": "small"}
    source = {"name": "docs.extend.examples.gratings", "size": 16}
    crop, normalise = "decode|random_resized_crop(16, scale=(0.5, 1.0))", "normalise('unit')"
    config.train = common.train_set({**source, "split": "train"}, (crop, crop), (normalise,))
    held_out = {**source, "split": "val", "rows": 32}
    config.val = common.held_out_set(held_out, ("decode",), (normalise,), batch_size=16)
    config.batch_size = 16
    config.total_steps = 8
    config.optimizer = {"name": "adam", "learning_rate": 1e-3}
    config.evals = {"nearest_mean": {"name": "docs.extend.examples.nearest_mean"}}
    config.log_every_steps = 4
    config.eval_every_steps = 8
    config.save_every_steps = 100
    return config
