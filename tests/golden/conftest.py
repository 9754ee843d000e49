"""One test for each stored case: DIR/<system>/*.npz of `pytest tests/golden --golden-root DIR`."""

from __future__ import annotations

import pathlib

HERE = pathlib.Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption(
        "--golden-root",
        default=str(HERE),
        help="folder that holds one folder of .npz cases for each system",
    )


def pytest_generate_tests(metafunc):
    if "golden_file" in metafunc.fixturenames:
        root = pathlib.Path(metafunc.config.getoption("--golden-root"))
        files = sorted(root.glob("*/*.npz"))
        if not files:
            raise ValueError(f"no golden case: {root}/<system>/*.npz matches nothing")
        names = [f"{f.parent.name}/{f.stem}" for f in files]
        metafunc.parametrize("golden_file", files, ids=names)
