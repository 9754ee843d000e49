"""What the programs share on the command line: the config flag, clean refusals, the cache."""

from __future__ import annotations

import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence

import jax
import ml_collections
from absl import app, flags
from ml_collections import config_flags

PACKAGE = pathlib.Path(__file__).parent
BAD_INPUT = 2  # exit code: what was given cannot be done, and nothing was

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with words after a colon.", lock_config=True
)


def config() -> tuple[ml_collections.ConfigDict, Iterable[str], str]:
    """The config of the command line, the fields set there, and `FILE.py:words` as given.

    Raises:
      ValueError: there is none.
    """
    if _CONFIG.value is None:
        raise ValueError("give --config=configs/FILE.py[:variant,word...]; --help says more")
    flag = flags.FLAGS["config"]
    given = config_flags.get_config_filename(flag)
    return _CONFIG.value, config_flags.get_override_values(flag), given


def is_refusal(error: ValueError) -> bool:
    """Whether an error says what is wrong with the input, not with the program.

    Our own code raises `ValueError` for bad input alone; one from deeper down is a fault of ours,
    whose traceback should be seen.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and pathlib.Path(frames[-1].filename).is_relative_to(PACKAGE)


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


def arguments(
    argv: list[str], own: flags.FlagValues, names: Sequence[str], usage: str | None
) -> list[str]:
    """Parse the command line of a program without a config; `--help` prints its docstring.

    Args:
      argv: program name, flags and arguments, in any order.
      own: the program's flags, apart from those of other programs, which may have the same names.
      names: of its arguments, all of which must be given.
      usage: the docstring.

    Returns:
      The arguments.

    Raises:
      ValueError: an unknown flag, a value that does not fit, another number of arguments.
    """
    own.set_gnu_getopt()
    for name in own:
        own[name].unparse()
    if {"-h", "--help", "--helpfull", "--helpshort"} & set(argv[1:]):
        print(f"{(usage or '').strip()}\n{own.get_help(include_special_flags=False)}")
        sys.exit(0)
    try:
        rest = own(argv)[1:]
    except flags.Error as error:
        raise ValueError(f"{error}; --help says which there are") from error
    if len(rest) != len(names):
        given = f"not {len(rest)} arguments ({', '.join(map(repr, rest)) or 'none'})"
        raise ValueError(f"give {' '.join(names)}, {given}; --help says more")
    return rest


def run(main: Callable[[list[str]], int]) -> None:
    """Run a program that parses its command line with `arguments`."""
    app.run(main, flags_parser=lambda argv: [*flags.FLAGS(argv[:1]), *argv[1:]])


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; whatever is wrong with them or with the config file is bad input."""
    try:
        rest = flags.FLAGS(argv)
        flag = flags.FLAGS["config"]
        file = config_flags.get_config_filename(flag) if flag.present else ""
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
