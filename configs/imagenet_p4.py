"""P4-ResNet-18 on ImageNet at 224 and 225 pixels.

Edixhoven, Lengyel, van Gemert: Using and Abusing Equivariance, ICCV workshops 2023, arXiv
2308.11316; `experiments/imagenet`. Width 32, 12,188,168 parameters, SGD with momentum, the rate
divided by ten after epochs 30, 60 and 80 of 90, five epochs of warm-up.

    python -m jaxequi.main --config=configs/imagenet_p4.py              # rendered scenes, small
    python -m jaxequi.main --config=configs/imagenet_p4.py:exact           # one pixel more
    python -m jaxequi.main --config=configs/imagenet_p4.py:approximate,paper \\
        --config.train.source.files=imagenet/train --config.val.source.files=imagenet/val

`paper` reads the reference's TFRecords (image/encoded, image/class/label from 1); `tfds` after it
takes imagenet2012 from TFDS instead. The reference trains with 64 images on each device and the
rate 0.1 for 256; here the batch is 256.

ImageNet was not at hand. The embedded default (192 rendered objects of 12 classes, 240 steps, a few
minutes on two CPU cores; 2026-11-22, seed 0, 48 held-out objects) shows that it runs, not what the
paper shows, for rendered objects lie in all positions and have no upright: 42 % are told as they
are and 42 % over the quarter turns at 48 pixels, 46 % and 46 % at 49; chance is 8 %.
"""

from configs import common

VARIANTS = {"approximate": {"extra": 0}, "exact": {"extra": 1}}


def get_config(arg: str | None = None):
    """Build `"VARIANT,word,..."`; without a variant, the approximate size."""
    variant, words = common.variant(arg, VARIANTS, WORDS)
    extra = VARIANTS[variant]["extra"]
    config = common.base()
    config.method = {"name": "supervised", "num_classes": None, "turns": 4}
    config.backbone = {"name": "gresnet", "architecture": "p4resnet18", "width": 4, "head": ""}
    config.online.features = ()
    config.evals = {"turned": {}}
    config.show = ("loss", "accuracy", "val/turned/accuracy/*")

    side = 48 + extra
    scenes = {"name": "scenes", "image_size": 48, "num_objects": 240, "seed": 0}
    views = (f"decode|resize(({side}, {side}))",)
    shown = {"views": views, "augment": ("normalise('imagenet')",)}
    config.train = common.train_set({**scenes, "split": "train"}, **shown)
    config.val = common.held_out_set({**scenes, "split": "val"}, **shown, batch_size=48)
    config.batch_size = 48
    config.total_epochs = 60
    config.optimizer = {**common.sgd_drops(1 / 3, 2 / 3, 8 / 9), "warmup_steps": 12}
    config.eval_every_steps = 1000
    for word in words:
        WORDS[word](config, 224 + extra)
    return config


def _paper(config, side: int) -> None:
    """The published experiment: 90 epochs of ImageNet, of which five warm up."""
    config.backbone.width = 32
    crop = f"random_resized_crop({side}, scale=(0.1, 1.0), ratio=(0.8, 1.25))"
    views = {"train": f"decode|{crop}|flip", "val": f"decode|resize(256)|center_crop({side})"}
    for part, name in ((config.train, "train"), (config.val, "val")):
        part.source = {"name": "tfrecord", "files": f"imagenet/{name}/data", "classes": 1000}
        part.views = (views[name],)
    config.batch_size = config.val.batch_size = 256
    config.total_epochs = 90
    config.optimizer.warmup_steps = 5 * 5004  # 1,281,167 images // 256
    config.eval_every_steps = config.save_every_steps = 5004


def _tfds(config, side: int) -> None:
    """ImageNet as TFDS prepared it."""
    del side
    for part, split in ((config.train, "train"), (config.val, "validation")):
        part.source = {"name": "tfds", "dataset": "imagenet2012", "split": split}


def _smoke(config, side: int) -> None:
    """Three steps of a narrow network on tiny scenes."""
    del side

    def shrink(config):
        config.backbone.width = 2
        for part, split in ((config.train, "train"), (config.val, "val")):
            scenes = {"name": "scenes", "image_size": 16, "num_objects": 24, "seed": 0}
            part.source = {**scenes, "split": split}
            part.views = ("decode",)
        config.val.batch_size = 8
        config.optimizer.warmup_steps = 1

    common.smoke(config, shrink)


WORDS = {"paper": _paper, "tfds": _tfds, "smoke": _smoke}
