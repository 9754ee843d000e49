"""Train or evaluate what a config says: python -m jaxequi.main --config=configs/sie.py:vicreg,smoke

The word after the colon names a variant, further words change its size (`smoke`: seconds, `paper`:
the published experiment). Any field can be set: --config.batch_size=128 --config.method.equi=64.

  --workdir DIR   where everything goes (default: a new folder under runs/); the same command with
                  the same --workdir goes on where an interrupted run stopped

Where things live: configs/ the experiments; jaxequi/methods/ what is learned, jaxequi/objectives/
the losses, jaxequi/evals/ the metrics, jaxequi/train/ the loop; the map is in README.md.

Exit codes: 0 finished, 2 bad input (nothing was done), 85 interrupted and saved.
"""

from __future__ import annotations

import datetime
import os
import pathlib
import re
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from jaxequi import experiment
from jaxequi.train import loop, mesh

BAD_INPUT = 2

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with words after a colon.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default a new one in runs/.")


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the environment already says where."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "jaxequi" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def new_workdir() -> pathlib.Path:
    """Name a folder after the config and the time: `runs/sie-vicreg-smoke-20260131-235959`."""
    if jax.process_count() > 1:
        raise ValueError("a run of several processes needs --workdir, the same for all of them")
    given = config_flags.get_config_filename(flags.FLAGS["config"])
    path, _, words = given.partition(":")
    name = re.sub(r"[^A-Za-z0-9_]+", "-", f"{pathlib.Path(path).stem} {words}").strip("-")
    return pathlib.Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def main(argv: list[str]) -> int:
    """Build the config's job and run it."""
    if len(argv) > 1:
        return refuse(f"unknown argument {argv[1]!r}; fields are set by --config.FIELD=VALUE")
    if _CONFIG.value is None:
        return refuse("give --config=configs/FILE.py[:variant,word...]; --help says more")
    logging.set_verbosity(logging.ERROR)  # orbax tells every file it writes
    try:
        mesh.start_distributed()
        overridden = config_flags.get_override_values(flags.FLAGS["config"])
        job = experiment.build(_CONFIG.value, overridden)
        workdir = pathlib.Path(_WORKDIR.value) if _WORKDIR.value else new_workdir()
        loop.prepare_workdir(job, workdir)
    except ValueError as error:
        return refuse(str(error))
    use_compilation_cache()
    code = loop.run(job, workdir)
    if code == loop.FINISHED and jax.process_index() == 0:
        from jaxequi import report  # brings matplotlib, which the first step need not wait for

        print(f"report: {report.write(workdir)}")
    return code


def refuse(reason: str) -> int:
    """Say in one breath what is wrong with the input."""
    print(f"jaxequi: {reason}", file=sys.stderr)
    return BAD_INPUT


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; whatever is wrong with them or with the config file is bad input."""
    try:
        rest = flags.FLAGS(argv)
        file = config_flags.get_config_filename(flags.FLAGS["config"]) or ""
        if file and not os.path.exists(file.partition(":")[0]):
            raise ValueError(f"there is no config file {file.partition(':')[0]!r}")
        return rest
    except (flags.Error, ValueError) as error:
        # A config file runs while the flags are parsed, and absl puts a whole traceback into the
        # message; what the file itself said is the last line.
        text = str(error)
        if "Traceback" in text:
            text = text.strip().splitlines()[-1].partition(": ")[2]
        sys.exit(refuse(text))
    except (AttributeError, KeyError) as error:  # ml_collections: no such field
        inner: BaseException = error
        while inner.args and isinstance(inner.args[0], BaseException):
            inner = inner.args[0]
        field, _, hint = str(inner.args[0] if inner.args else inner).partition("\n")
        sys.exit(refuse(f"unknown config field {field}. {hint}"))


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
