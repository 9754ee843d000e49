"""What there is to render: ShapeNet trees, folders of meshes, lists that choose among them."""

import os
import pathlib

import numpy as np
import pytest

from jaxequi.data import objects
from jaxequi.prepare import models


@pytest.fixture
def shapenet(tmp_path):
    for name in ("02691156/b", "02691156/a", "03001627/c"):
        file = tmp_path / name / models.SHAPENET_FILE
        file.parent.mkdir(parents=True)
        file.touch()
    (tmp_path / "taxonomy.json").touch()
    (tmp_path / "03001627" / "no model here").mkdir()
    return tmp_path


def names(found):
    return [model.name for model in found]


def test_a_shapenet_tree(shapenet):
    found = models.find(shapenet)
    assert names(found) == ["02691156/a", "02691156/b", "03001627/c"]
    assert found[2].shape == shapenet / "03001627/c/models/model_normalized.obj"
    assert all(model.shapenet for model in found)


def test_a_folder_of_meshes(tmp_path):
    for name in ("chair/one.obj", "chair/old/two.GLB", "lamp/three.ply", "four.obj", "chair/x.mtl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = models.find(tmp_path)
    assert names(found) == ["chair/old_two", "chair/one", "lamp/three", "object/four"]
    assert not any(model.shapenet for model in found)
    (tmp_path / "chair" / "one.ply").touch()
    with pytest.raises(ValueError, match=r"one\.obj and .*one\.ply would both be chair/one"):
        models.find(tmp_path)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("pipe.obj", os.mkfifo, r"pipe\.obj is a pipe"),
        ("up", lambda path: path.symlink_to(".."), "up is the folder .* once more"),
        ("two\nlines.obj", pathlib.Path.touch, r"two.nlines\.obj' has a name that is no printable"),
    ],
)
def test_what_is_no_mesh_is_refused(tmp_path, name, make, words):
    (tmp_path / "chair").mkdir()
    (tmp_path / "chair" / "one.obj").touch()
    make(tmp_path / "chair" / name)
    with pytest.raises(ValueError, match=words):
        models.find(tmp_path)


def test_a_pipe_in_a_shapenet_tree_is_refused(shapenet):
    file = shapenet / "02691156/a" / models.SHAPENET_FILE
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match=r"model_normalized\.obj is no regular file"):
        models.find(shapenet)


def test_embedded_objects_are_those_of_scenes():
    found = models.embedded(13, seed=3)
    assert names(found)[::12] == ["airplane/00000", "airplane/00012"]
    np.testing.assert_array_equal(found[12].shape.center, objects.build(3, 12).center)
    with pytest.raises(ValueError, match="take 1 or more"):
        models.embedded(0, seed=3)


def test_a_list_chooses_and_orders(shapenet):
    wanted = ["03001627/c", "02691156/a"]
    assert names(models.find(shapenet, wanted)) == wanted


def test_a_list_that_does_not_match_is_refused(shapenet, tmp_path):
    with pytest.raises(ValueError, match=r"2 of the 3 listed .* 3 of .*: 0/x, 0/y\n.*02691156/a"):
        models.find(shapenet, ["0/x", "03001627/c", "0/y"])
    with pytest.raises(ValueError, match=r"1 objects more than once: 03001627/c"):
        models.find(shapenet, ["03001627/c", "03001627/c"])
    with pytest.raises(ValueError, match="there is no folder"):
        models.find(tmp_path / "none")
    with pytest.raises(ValueError, match="holds neither"):
        models.find(shapenet / "03001627" / "no model here")


@pytest.mark.parametrize(
    "array",
    [[["0269", "a"], ["0300", "c"]], ["/0269/a/", "/0300/c/"]],
    ids=["of the generator", "of the data set"],
)
def test_both_published_forms_of_a_list(tmp_path, array):
    np.save(tmp_path / "list.npy", np.array(array))
    assert models.read_list(tmp_path / "list.npy") == ["0269/a", "0300/c"]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ([1, 2], "int64 of shape"),
        ([["a", "b", "c"]], r"shape \(1, 3\)"),
        (["/a/b/", "/a/b/c/"], "'a/b/c'"),
        (["../b"], r"'\.\./b'"),
        (np.zeros((0, 2), "U3"), "no name"),
    ],
)
def test_other_lists_are_refused(tmp_path, array, message):
    np.save(tmp_path / "list.npy", np.array(array))
    with pytest.raises(ValueError, match=message):
        models.read_list(tmp_path / "list.npy")
