"""Imports go down, never up; heavy packages are imported in one place each."""

import ast
import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "jaxequi"
FLOORS = [
    {"errors", "types", "arguments", "names", "pipes"},
    {"groups"},
    {"nn"},
    {"models"},
    {"objectives"},
    {"methods"},
    {"train"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
BESIDE = {  # rooms beside the house, and what they may import apart from floors 0 and 1
    "augment": {"nn"},
    "data": set(),
    "evals": {"data", "objectives"},
    "probes": {"nn"},
}
DOORS = {
    "tensorflow": (),
    "tensorflow_datasets": ("data/sources/tfds.py", "prepare/tfds.py"),
    "torch": ("interop/files.py", "bench/_torch.py"),
    "bpy": ("prepare/scene.py",),
    "e3nn_jax": ("nn/heads.py",),
    "grain": ("data/loader.py",),
    "orbax": ("train/checkpoint.py",),
    "tensorboardX": ("train/log.py",),
    "huggingface_hub": ("interop/hub.py",),
    "wandb": ("train/trackers/wandb.py",),
    "mlflow": ("train/trackers/mlflow.py",),
    "onnx": ("interop/onnx.py",),
    "onnxruntime": ("interop/onnx.py",),
}


def imports(file: pathlib.Path) -> set[str]:
    """Dotted names that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(file: pathlib.Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_down(file):
    here = room(file)
    for name in imports(file):
        package, _, rest = name.partition(".")
        there = rest.partition(".")[0]
        if package != "jaxequi" or there in ("", here):
            continue
        if here in BESIDE:
            allowed = BESIDE[here] | FLOORS[0] | FLOORS[1]
            assert there in allowed, f"{file} imports {name}"
        elif here in FLOOR:
            assert FLOOR.get(there, 99) <= FLOOR[here], f"{file} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_heavy_packages_have_one_door(file):
    here = str(file.relative_to(ROOT))
    for name in imports(file):
        package = name.partition(".")[0]
        if package in DOORS:
            assert here in DOORS[package], f"{here} imports {name}; its door is {DOORS[package]}"


def test_the_program_needs_no_optional_package():
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'torch', 'bpy', 'libtpu', 'e3nn_jax', 'tensorflow_datasets'):\n"
        "    sys.modules[name] = None\n"
        "import jaxequi.main\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_no_help_waits_for_what_it_does_not_need():
    """A program's `--help` imports its file, and nothing that takes long beside JAX and Flax."""
    code = (
        "import importlib, sys\n"
        "from jaxequi.__main__ import programs\n"
        "named = [name for name, _ in programs()]\n"
        "for name in named:\n"
        "    importlib.import_module(name)\n"
        "slow = {'grain', 'orbax', 'matplotlib', 'tensorflow', 'torch', 'scipy'}\n"
        "found = slow & {*sys.modules}\n"
        "assert len(named) > 15 and not found, found\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_package_says_which_programs_there_are():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "jaxequi"], capture_output=True, text=True
    )
    named = {line.split()[2] for line in done.stdout.splitlines() if "python -m" in line}
    assert {"jaxequi.main", "jaxequi.report", "jaxequi.bench", "jaxequi.prepare.tfds"} <= named
    for name in named:
        assert importlib.util.find_spec(name) is not None
    assert "numpy" not in done.stderr  # it answers at once
