"""Data that is not here: what is known of it by its name."""

from __future__ import annotations

import numpy as np
import pytest

from jaxequi.data.sources import blank
from jaxequi.plan import inputs


@pytest.mark.parametrize(
    ("source", "examples", "classes"),
    [
        ({"name": "folder", "root": "imagenet/train"}, 1_281_167, 1000),
        ({"name": "tfds", "dataset": "imagenet2012"}, 1_281_167, 1000),
        ("folder(root='ILSVRC/ImageNet-1k/train')", 1_281_167, 1000),
        ({"name": "folder", "root": "imagenet_20/train"}, 20_000, 1000),
        ("threedie(root='DIR')", 41_920, 55),
        ({"name": "packed", "root": "3DIEBench"}, 41_920, 55),
        ({"name": "tfds", "dataset": "cifar100"}, 50_000, 100),
        ({"name": "arrays", "path": "CIFAR-10"}, 50_000, 10),
        ({"name": "arrays", "path": "fashion-mnist"}, 60_000, 10),
        ("folder(root='imagenet-100')", None, None),
        ("folder(root='tiny-imagenet-200')", None, None),
        ("folder(root='rotmnist')", None, None),
        ("folder(root='my_images')", None, None),
    ],
)
def test_sets_by_their_names(source, examples, classes):
    found = inputs._published(source)
    assert (found is None) == (examples is None)
    if found is not None:
        assert (found[0], found[2]) == (examples, classes)


def test_a_source_of_black_images():
    source = blank.make(examples=5, classes=3, size=4, num_views=2, latents=7)
    records = source.read([0, 4], np.zeros((2, 2), int))
    assert [record["label"] for record in records] == [0, 1]
    assert [np.shape(records[0][name]) for name in ("image", "latent")] == [(2, 4, 4, 3), (2, 7)]
    assert not np.any(records[0]["image"])
    assert (len(source), source.num_views, source.class_names) == (5, 2, ("0", "1", "2"))
    assert "latent" not in blank.make(2, 2).read([0], np.zeros((1, 1), int))[0]
    for wrong, message in (({"examples": 0}, "at least 1"), ({"classes": 6}, "each class needs")):
        with pytest.raises(ValueError, match=message):
            blank.make(**{"examples": 5, "classes": 3, **wrong})
