"""3DIEBench as it is rendered: latents, layout, shards, resuming, and once with Blender itself."""

import hashlib
import importlib.util
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxequi.data import decoding, objects, raycast
from jaxequi.data.errors import DataError
from jaxequi.data.sources import threedie
from jaxequi.prepare import models, render_3diebench
from jaxequi.prepare.render_3diebench import draw_latents, keep_settings, render, shard_of

ROOT = pathlib.Path(__file__).parents[2]


class Painter:
    """In the place of Blender: an image is red as far as its floor hue, and green 50."""

    def __init__(self, broken=(), stop_after=10**6):
        self.broken, self.left, self.loaded = broken, stop_after, []

    def load(self, model):
        if model.name in self.broken:
            raise DataError("it is broken")
        self.loaded.append(model.name)

    def render(self, latent):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        image = np.zeros((16, 16, 3), np.uint8)
        image[..., 0] = round(200 * latent[3])
        image[..., 1] = 50
        return image


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_latents_come_in_the_order_of_the_reference():
    key = int.from_bytes(hashlib.sha256(b"chair/x").digest()[:8], "little")
    rng = np.random.default_rng((5, key))
    for latent in draw_latents(5, "chair/x", 3):
        floor_hue, theta = rng.uniform(0, 1), rng.uniform(0, np.pi / 4)
        phi, spot_hue = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1)
        angles = [rng.uniform(-np.pi / 2, np.pi / 2) for _ in range(3)]
        np.testing.assert_array_equal(latent, [*angles, floor_hue, theta, phi, spot_hue])


def test_latents_fill_their_ranges_and_depend_on_seed_and_object():
    latents = draw_latents(0, "chair/x", 4000)
    quarter, half, whole = np.pi / 4, np.pi / 2, 2 * np.pi
    np.testing.assert_allclose(latents.min(0), [-half] * 3 + [0] * 4, atol=0.01)
    np.testing.assert_allclose(latents.max(0), [half] * 3 + [1, quarter, whole, 1], atol=0.01)
    np.testing.assert_array_equal(draw_latents(0, "chair/x", 7), latents[:7])
    for seed, name in ((1, "chair/x"), (0, "chair/y")):
        assert not np.isclose(draw_latents(seed, name, 7), latents[:7]).any()


def test_shards_cover_everything_once():
    found = models.embedded(23, seed=0)
    shards = [shard_of(found, f"{number}/5") for number in range(5)]
    assert {len(shard) for shard in shards} == {4, 5}
    names = [model.name for shard in shards for model in shard]
    assert sorted(names) == sorted(model.name for model in found)
    for wrong in ("5/5", "1", "a/b", "-1/5", "0/0"):
        with pytest.raises(ValueError, match="write I/N"):
            shard_of(found, wrong)


def test_the_published_layout_is_read_back(tmp_path):
    found = models.embedded(5, seed=0)
    assert render(found, Painter(), tmp_path, views=3) == []
    assert len(files(tmp_path)) == 5 * 3 * 2
    stored = np.load(tmp_path / "bed/00001/latent_2.npy")
    assert stored.dtype == np.float64
    np.testing.assert_array_equal(stored, draw_latents(0, "bed/00001", 3)[2])
    source = threedie.make(str(tmp_path), "train", num_views=3)
    assert len(source) == 4
    for row, record in enumerate(source.read(range(4), np.array([[2, 0]] * 4))):
        drawn = draw_latents(0, source.objects[row], 3)[[2, 0]]
        np.testing.assert_array_equal(record["latent"], drawn.astype(np.float32))
        for image, latent in zip(record["image"], drawn):
            red, green, blue = np.asarray(decoding.decode(image)).mean((0, 1))
            # OpenCV took the reference's red for blue.
            np.testing.assert_allclose([blue, green, red], [200 * latent[3], 50, 0], atol=3)


def test_red_stays_red_if_asked_for(tmp_path):
    render(models.embedded(1, seed=0), Painter(), tmp_path, views=1, rgb=True)
    image = np.asarray(decoding.decode((tmp_path / "airplane/00000/image_0.jpg").read_bytes()))
    assert image[..., 0].mean() > image[..., 2].mean() + 20


def test_neither_shards_nor_interruptions_change_a_byte(tmp_path):
    found = models.embedded(4, seed=0)
    render(found, Painter(), tmp_path / "whole", views=3)
    for number in (1, 0):
        render(shard_of(found, f"{number}/2"), Painter(), tmp_path / "parts", views=3)
    with pytest.raises(KeyboardInterrupt):
        render(found, Painter(stop_after=7), tmp_path / "stopped", views=3)
    # An image without its latent, and a file half written, are what a kill leaves.
    (tmp_path / "stopped/boat/00002/image_1.jpg").write_bytes(b"half")
    (tmp_path / "stopped/boat/00002/image_2.jpg.partial").write_bytes(b"ha")
    again = Painter()
    render(found, again, tmp_path / "stopped", views=3)
    assert again.loaded == ["boat/00002", "camera/00003"]
    assert files(tmp_path / "parts") == files(tmp_path / "whole") == files(tmp_path / "stopped")
    finished = Painter()
    render(found, finished, tmp_path / "whole", views=3)
    assert finished.loaded == []


def test_what_cannot_be_read_is_skipped_and_listed(tmp_path):
    found = models.embedded(3, seed=0)
    skipped = render(found, Painter(broken=["bed/00001"]), tmp_path, views=1)
    assert skipped == ["bed/00001: it is broken"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["airplane", "boat"]
    with pytest.raises(ValueError, match=r"none of the objects(.|\n)*bed/00001: it is broken"):
        render(found[1:2], Painter(broken=["bed/00001"]), tmp_path, views=1)


def test_one_folder_holds_one_way_of_rendering(tmp_path):
    keep_settings(tmp_path / "new", {"seed": 0, "samples": 100})
    keep_settings(tmp_path / "new", {"seed": 0, "samples": 100})
    with pytest.raises(ValueError, match="was rendered with samples 100, not 4;"):
        keep_settings(tmp_path / "new", {"seed": 0, "samples": 4})
    for content in ("[1]", "{", "[" * 10**5, "\udcff"):
        (tmp_path / "new" / "render.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match=r"render\.json is damaged"):
            keep_settings(tmp_path / "new", {"seed": 0, "samples": 100})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "02691156").mkdir()
    with pytest.raises(ValueError, match=r"no render\.json"):
        keep_settings(tmp_path / "other", {"seed": 0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "/none"], "there is no folder /none"),
        (["--embedded", "2", "--views", "0"], "flag --views=0: "),
        (["--embedded", "2", "--threads", "-1"], "flag --threads=-1: "),
        (["--embedded", "2", "--shard", "2/2"], "--shard is '2/2'"),
        (["--embedded", "2", "--models", "."], "give --models=DIR or --embedded=N, one of them"),
        ([], "give --models=DIR or --embedded=N, one of them"),
        (["--embedded", "2", "--engine", "povray"], "flag --engine=povray: "),
        (["--embedded", "2", "again"], "give OUT, not 2 arguments"),
        (["--embedded", "2", "--sead", "1"], "Unknown command line flag 'sead'"),
        (["--embedded", "2", "--objects", "x.npy"], "lists objects of --models"),
        (["--models", ".", "--objects", "/none/x.npy"], "cannot read /none/x.npy"),
        (["--embedded", "2"], "Blender is not installed"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.setitem(sys.modules, "bpy", None)
    assert render_3diebench.main(["render", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def run(*arguments):
    """Run the program in a process of its own: Blender in this one would outlive the test."""
    command = [sys.executable, "-m", "jaxequi.prepare.render_3diebench", *map(str, arguments)]
    small = ["--image-size", "32", "--samples", "4", "--threads", "1"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *small], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )


NO_BPY = importlib.util.find_spec("bpy") is None
needs_blender = pytest.mark.skipif(NO_BPY, reason='Blender, 370 MB, is an extra: pip ".[render]"')


def likeness(one, other):
    """Correlation of two images, each channel less its mean."""
    one, other = (image - image.mean((0, 1)) for image in (one, other))
    return (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())


@needs_blender
def test_blender_agrees_with_the_embedded_renderer(tmp_path):
    command = (tmp_path, "--embedded", 5, "--views", 2, "--rgb")
    run(*command)
    source = threedie.make(str(tmp_path), "train", num_views=2)
    for row, record in enumerate(source.read(range(4), np.array([[0, 1]] * 4))):
        parts = objects.build(0, int(source.objects[row].split("/")[1]))
        for image, latent in zip(record["image"], record["latent"]):
            turned, relit = latent.copy(), latent.copy()
            turned[:3] *= -1
            relit[5] += np.pi
            pixels = np.asarray(decoding.decode(image))
            assert pixels.shape == (32, 32, 3)
            cast = raycast.render(parts, np.array([latent, turned, relit]), 32)
            # The curves from light to pixels differ, shapes and shadows do not.
            right, wrong_turn, wrong_light = (likeness(pixels, other) for other in cast)
            assert right > 0.87
            assert right > wrong_turn + 0.3
            assert right > wrong_light
    before = files(tmp_path)
    (tmp_path / "bed/00001/latent_1.npy").unlink()
    (tmp_path / "car/00004/image_0.jpg").unlink()
    run(*command)
    assert files(tmp_path) == before


@needs_blender
def test_blender_skips_meshes_that_do_not_parse(tmp_path):
    meshes = tmp_path / "meshes" / "thing"
    meshes.mkdir(parents=True)
    corners = "v 0 0 0\nv 9 0 0\nv 0 9 0\nv 0 0 9\n"
    (meshes / "good.obj").write_text(corners + "f 1 3 2\nf 1 2 4\nf 2 3 4\nf 1 4 3\n")
    for name in ("flat.obj", "noise.glb", "noisy.ply"):
        (meshes / name).write_bytes(corners.encode())
    done = run(tmp_path / "out", "--models", tmp_path / "meshes", "--views", 1)
    assert "1 objects are in" in done.stdout
    assert "3 were skipped" in done.stderr
    for name in ("flat", "noise", "noisy"):
        assert f"thing/{name}: {meshes}" in done.stderr
    image = np.asarray(decoding.decode((tmp_path / "out/thing/good/image_0.jpg").read_bytes()))
    assert image[12:20, 12:20].std() > 5  # there is something in the middle
