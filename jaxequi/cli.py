"""What the programs share on the command line: flags, clean refusals, the compilation cache.

Every program is `def main(argv)` with absl flags, run by `cli.run(main)`. It prints its answer,
refuses bad input in one line with exit code 2, and shows its docstring for --help.
"""

from __future__ import annotations

import functools
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from jaxequi.errors import Refusal

BAD_INPUT = 2  # exit code: what was given cannot be done, and nothing was


def define_config() -> None:
    """Define --config, for a program that reads one."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file, with words after a colon.", lock_config=True
    )


def run(main: Callable[[list[str]], int]) -> None:
    """Parse the flags, run a program, and exit with its code; a refusal is one message."""

    @functools.wraps(main)
    def clean(argv: list[str]) -> int:
        logging.set_verbosity(logging.ERROR)  # orbax tells every file it reads and writes
        try:
            return main(argv)
        except Refusal as error:
            return refuse(str(error))

    app.run(clean, flags_parser=parse)


def config() -> tuple[ml_collections.ConfigDict, Iterable[str], str]:
    """The config of the command line, the fields set there, and `FILE.py:words` as given.

    Raises:
      ValueError: there is none.
    """
    found = flags.FLAGS.config
    if found is None:
        raise Refusal("give --config=configs/FILE.py[:variant,word...]; --help says more")
    if not isinstance(found, ml_collections.ConfigDict):
        raise Refusal(f"the config file made {type(found).__name__}, not a ConfigDict")
    flag = flags.FLAGS["config"]
    given = config_flags.get_config_filename(flag)
    return found, config_flags.get_override_values(flag), given


def no_arguments(argv: Sequence[str]) -> None:
    """Raise `ValueError` unless a program that takes flags alone was given flags alone."""
    if argv[1:]:
        raise Refusal(
            f"unknown argument {argv[1]!r}; flags are written --NAME=VALUE, fields of a config "
            "--config.FIELD=VALUE; --help says which there are"
        )


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the environment already says where."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "jaxequi" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def refuse(reason: str, code: int = BAD_INPUT) -> int:
    """Say in one breath what is wrong, by default with the input; return the exit code."""
    print(f"jaxequi: {reason}", file=sys.stderr)
    return code


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; whatever is wrong with them or with the config file is bad input."""
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            flag = flags.FLAGS["config"]
            file = config_flags.get_config_filename(flag) if flag.present else ""
            if file and not os.path.exists(file.partition(":")[0]):
                raise Refusal(f"there is no config file {file.partition(':')[0]!r}")
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
    except Exception as error:  # whatever a config file does while it runs
        sys.exit(refuse(f"the config file cannot be run: {type(error).__name__}: {error}"))
