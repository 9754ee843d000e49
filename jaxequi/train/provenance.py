"""Where a run comes from: command, commit, date, machine, versions; `about.json` in its folder."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax

ABOUT_FILE = "about.json"
_PACKAGE = pathlib.Path(__file__).parent.parent


def about() -> dict[str, Any]:
    """Describe this process: what a reader needs to run the same again."""
    device = jax.devices()[0]
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        },
    }


def commit() -> str | None:
    """The commit of the checkout that this package runs from, "-dirty" with changes in it.

    None where the package is installed and no checkout, or without git.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=_PACKAGE, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return None


def read(workdir: str | pathlib.Path) -> dict[str, Any]:
    """Read what a run's folder says; nothing of runs that were made before or by hand."""
    try:
        found = json.loads((pathlib.Path(workdir) / ABOUT_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
