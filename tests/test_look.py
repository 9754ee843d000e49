"""The look at the data: an image with captions, statistics that are right, errors that help."""

import numpy as np
import pytest
from PIL import Image

from jaxequi import look
from jaxequi.data import recipes
from jaxequi.data.sources.arrays import Arrays


@pytest.fixture
def source():
    images = np.full((12, 20, 20, 3), 51, np.uint8)
    images[::2] = 204
    return Arrays(images, np.arange(12) % 3, ["cat", "dog", "owl"])


def test_statistics_are_those_of_the_normalised_views(source, monkeypatch):
    clock, seconds = iter((1.0, 1.5)), [0.5]
    monkeypatch.setattr(look.time, "perf_counter", lambda: next(clock))
    sheet, found = look.look(source, recipes.cifar_eval(16), rows=3, examples=12)
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
    np.testing.assert_allclose(found["mean"][0], (0.5 - mean) / std, rtol=1e-5)
    np.testing.assert_allclose(found["std"][0], 0.3 / std, rtol=1e-5)
    assert found["classes"] == "classes of all examples: cat 4, dog 4, owl 4"
    assert found["examples_per_second"] == pytest.approx(12 / seconds[0])
    pixels = np.asarray(sheet)
    tall = 16 + look.LINE + 8
    shown = {int(pixels[row * tall + look.LINE + 10, 10, 0]) for row in range(3)}
    assert shown <= {51, 204}


def test_undone_normalisation_gives_the_levels_back(source):
    recipe = recipes.threedie(20)
    levels = np.arange(60).reshape(1, 1, 4, 5, 3).astype(np.float32)
    mean = np.array([0.5016, 0.5037, 0.5060], np.float32)
    std = np.array([0.1030, 0.0999, 0.0969], np.float32)
    np.testing.assert_array_equal(look.levels(recipe, (levels / 255 - mean) / std), levels)


def test_captions_list_what_was_drawn():
    aug = {"flip": np.ones((1, 2, 1)), "gaussian_blur": np.array([[[1, 0.25], [0, 1.5]]])}
    assert look.caption(aug, 0, 1) == ["flip 1", "gaussian_blur 0 1.5"]


def test_the_program_writes_a_image_of_pairs(tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 20, 20, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(9) % 2)
    out = tmp_path / "look.png"
    arguments = [f"arrays(path='{tmp_path / 'a.npz'}')", "--recipe", "eqinv(size=16)"]
    assert look.main(["look", *arguments, "--out", str(out), "--rows", "4", "--examples", "9"]) == 0
    printed = capsys.readouterr().out
    assert "9 examples" in printed
    assert "0 5, 1 4" in printed
    assert "view 1: channel mean" in printed
    assert "examples/s" in printed
    with Image.open(out) as sheet:
        assert sheet.width > 2 * 16
    assert look.main(["look", *arguments[:1], "--recipe", "moco_v3"]) == 2
    assert "moco_v2" in capsys.readouterr().err


def test_a_source_of_ones_own_is_named_by_its_dots(tmp_path, capsys):
    out = tmp_path / "look.png"
    source = "docs.extend.examples.gratings(split='train')"
    asked = ["--recipe", "cifar_eval(size=16)", "--out", str(out), "--examples", "8"]
    assert look.main(["look", source, *asked]) == 0
    assert "view 0: channel mean" in capsys.readouterr().out
    assert out.exists()
    assert look.main(["look", "docs.extend.examples.grating()", *asked]) == 2
    assert "is a module of your own" in capsys.readouterr().err
