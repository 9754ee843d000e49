"""What the programs share on the command line: flags, clean refusals, the compilation cache.

A program is `main(argv) -> exit code`, made by `@cli.program`. Its flags are its own
(`FLAGS = flags.FlagValues()`), so that two programs in one process do not meet; `arguments` parses
them. Bad input is one message and exit code 2; `--help` is the docstring and the flags.
"""

from __future__ import annotations

import ast
import functools
import os
import pathlib
import re
import sys
import types
from collections.abc import Callable, Iterable, Sequence

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from jaxequi.errors import Refusal, Unwritable

FAILED = 1  # exit code: it was begun and could not be finished
BAD_INPUT = 2  # exit code: what was given cannot be done, and nothing was
_HELP = {"-h", "--help", "--helpfull", "--helpshort"}

Main = Callable[[list[str]], int]


def program(main: Main) -> Main:
    """Make a program of a function: what it refuses is one message, and exit code 2.

    A disk that is full is one message too, and exit code 1.
    """

    @functools.wraps(main)
    def clean(argv: list[str]) -> int:
        # Orbax tells every file that it reads and writes; what it cannot do it also raises.
        logging.set_verbosity(logging.FATAL)
        sys.excepthook = _unless_abandoned
        try:
            return main(argv)
        except Refusal as error:
            return refuse(str(error))
        except Unwritable as error:
            return refuse(str(error), code=FAILED)

    return clean


def _unless_abandoned(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """Print an exception that nobody caught, but not what a checkpoint that failed leaves behind.

    Its first error ends the event loop that wrote it, and is told. Tensorstore prints a traceback
    for each array whose writing ends after that, through this hook.
    """
    if not (kind is RuntimeError and str(error) == "Event loop is closed"):
        sys.__excepthook__(kind, error, trace)


def run(main: Main) -> None:
    """Run a program, and exit with its code."""
    app.run(main, flags_parser=lambda argv: [*flags.FLAGS(argv[:1]), *argv[1:]])


def refuse(reason: str, code: int = BAD_INPUT) -> int:
    """Say in one breath what is wrong, by default with the input; return the exit code."""
    print(f"jaxequi: {reason}", file=sys.stderr)
    return code


def arguments(
    argv: list[str], own: flags.FlagValues, names: Sequence[str], usage: str | None
) -> list[str]:
    """Parse a command line; `--help` prints the program's docstring and ends it.

    Args:
      argv: program name, flags and arguments, in any order.
      own: the program's flags, apart from those of other programs, which may have the same names.
      names: of its arguments. The last may end with "..." for one or more of them, or be
        "[NAME...]" for any number.
      usage: the docstring.

    Returns:
      The arguments.

    Raises:
      ValueError: an unknown flag, a value or a config file that does not fit, another number of
        arguments.
    """
    argv = [_spelled_out(word) for word in argv]
    own.set_gnu_getopt()
    rest = _parsed(argv, own, usage)
    least = len(names) - bool(names and names[-1].startswith("["))
    most = sys.maxsize if names and "..." in names[-1] else len(names)
    if not least <= len(rest) <= most:
        given = f"not {len(rest)} arguments ({', '.join(map(repr, rest)) or 'none'})"
        wanted = f"give {' '.join(names)}" if names else "flags are written --NAME=VALUE"
        raise Refusal(f"{wanted}, {given}; --help says more")
    return rest


def _spelled_out(word: str) -> str:
    """`--config.backbone=c8resnet18` is short for `--config.backbone.name=c8resnet18`."""
    return re.sub(r"^(--?config\.backbone)=([A-Za-z]\w*)$", r"\1.name=\2", word)


def _parsed(argv: list[str], own: flags.FlagValues, usage: str | None) -> list[str]:
    reads_config = "config" in own
    for name in list(own):
        if name.partition(".")[0] == "config":
            delattr(own, name)  # with the fields that an earlier command line set
        else:
            own[name].unparse()
    if reads_config:
        define_config(own, argv)
    if _HELP & set(argv[1:]):
        print(f"{(usage or '').strip()}\n{own.get_help(include_special_flags=False)}")
        sys.exit(0)
    try:
        rest = own(argv)[1:]
        if "config" in own and own["config"].present:
            file = config_flags.get_config_filename(own["config"]).partition(":")[0]
            if not os.path.isfile(file):
                what = "is a folder" if os.path.isdir(file) else "does not exist"
                raise Refusal(f"there is no config file {file!r}: it {what}")
        return rest
    except flags.Error as error:
        text = str(error)
        # A config file runs while the flags are parsed, and absl puts a whole traceback into the
        # message; what the file itself said is the last line.
        if "Traceback" in text:
            raise Refusal(_said(text)) from error
        raise Refusal(f"{text}; --help says which there are") from error
    except (AttributeError, KeyError) as error:  # ml_collections: no such field
        if "get_config" in str(error):
            raise Refusal(
                "the config file has no function get_config(arg), which makes the config"
            ) from error
        inner: BaseException = error
        while inner.args and isinstance(inner.args[0], BaseException):
            inner = inner.args[0]
        field, _, hint = str(inner.args[0] if inner.args else inner).partition("\n")
        parsed = _with_argument(argv, own, usage, field.strip("'\""))
        if parsed is None:
            raise Refusal(f"unknown config field {field}. {hint}".rstrip()) from error
        return parsed
    except Refusal:
        raise
    except Exception as error:  # whatever else a config file does while it runs
        raise Refusal(
            f"the config file cannot be run: {type(error).__name__}: {str(error) or 'no message'}"
        ) from error


def _with_argument(
    argv: list[str], own: flags.FlagValues, usage: str | None, field: str
) -> list[str] | None:
    """Parse again without a field that the config does not list, and add it to its part.

    A part that has a `name` is given to what it names, which refuses arguments that are not its
    own, and says which it has. None where the part has no name.
    """
    dotted = re.compile(rf"--?config\.(.+)\.{re.escape(field)}=(.*)", re.DOTALL)
    found = {word: match for word in argv if (match := dotted.fullmatch(word))}
    if not found:
        return None
    rest = _parsed([word for word in argv if word not in found], own, usage)
    for match in found.values():
        part = own.config
        for name in match[1].split("."):
            part = part.get(name) if isinstance(part, ml_collections.ConfigDict) else None
        if not isinstance(part, ml_collections.ConfigDict) or "name" not in part:
            return None
        text = match[2].capitalize() if match[2] in ("true", "false") else match[2]
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text
        with part.unlocked():
            part[field] = value
        config_flags.get_override_values(own["config"])[f"{match[1]}.{field}"] = value
    return rest


def _said(text: str) -> str:
    """The last line of a traceback in a message, without the name of a plain refusal's type."""
    last = text.strip().splitlines()[-1]
    kind, _, message = last.partition(": ")
    return message if kind.endswith(("ValueError", "Refusal")) else f"the config file: {last}"


def define_config(own: flags.FlagValues, argv: list[str] | None = None) -> None:
    """Define --config, for a program that reads one; its fields are looked for in `argv`."""
    what = "Config file, with words after a colon."
    config_flags.DEFINE_config_file("config", None, what, own, lock_config=True, sys_argv=argv)


def config(own: flags.FlagValues) -> tuple[ml_collections.ConfigDict, Iterable[str], str]:
    """The config of the command line, the fields set there, and `FILE.py:words` as given.

    Raises:
      ValueError: there is none.
    """
    found = own.config
    if found is None:
        raise Refusal("give --config=configs/FILE.py[:variant,word...]; --help says more")
    if not isinstance(found, ml_collections.ConfigDict):
        raise Refusal(f"the config file gives {type(found).__name__}, not a ConfigDict")
    given = config_flags.get_config_filename(own["config"])
    return found, config_flags.get_override_values(own["config"]), given


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the environment already says where."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "jaxequi" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
