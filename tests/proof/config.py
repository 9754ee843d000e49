"""The experiment of `queue_method`, on scikit-learn's digits.

python -m jaxequi.main --config=tests/proof/config.py
"""

from configs import common

VARIANTS = {"queue": {}}


def get_config(arg: str | None = None):
    """Build the config; there is one variant."""
    common.variant(arg, VARIANTS, {})
    config = common.base()
    config.method = {"name": "tests.proof.queue_method", "K": 32, "T": 0.2}
    config.backbone = {"name": "resnet", "architecture": "resnet10", "width": 4, "stem": "small"}
    crop = "decode|random_resized_crop(16, scale=(0.5, 1.0))"
    normalise = ("normalise('unit')",)
    part = {"name": "subset", "source": {"name": "digits", "split": "train"}, "stop": 0.047}
    config.train = common.train_set(part, (crop, crop), normalise)
    test = {"name": "subset", "source": {"name": "digits", "split": "test"}, "stop": 0.1}
    views = ("decode|resize((16, 16))",)
    config.val = common.held_out_set(test, views, normalise, batch_size=16)
    config.batch_size = 16
    config.total_steps = 8
    config.optimizer = {
        "name": "sgd",
        "learning_rate": 0.05,
        "momentum": 0.9,
        "groups": {"head": {"match": "^head/", "name": "adam", "learning_rate": 0.01}},
    }
    config.evals = {"online": {}, "knn": {**common.knn(5)}}
    config.log_every_steps = 1
    config.eval_every_steps = 8
    config.save_every_steps = 100
    return config
