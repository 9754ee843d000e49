"""The programs of this folder and `look`: help, flags of their own, refusals in one line."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from jaxequi import look
from jaxequi.prepare import fewshot_subset, pack, render_3diebench, tfds

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = {
    look: {"recipe", "out", "rows", "examples", "seed"},
    fewshot_subset: {"shots", "seed", "independent"},
    pack: {"shard-examples", "threads", "verify"},
    render_3diebench: {
        *("models", "embedded", "objects", "views", "image-size", "seed", "shard", "engine"),
        *("samples", "device", "threads", "rgb"),
    },
    tfds: {"data-dir", "manual-dir"},
}
NAMES = [program.__name__.rpartition(".")[2] for program in PROGRAMS]


@pytest.mark.parametrize("program", PROGRAMS, ids=NAMES)
def test_help_is_the_docstring_and_the_flags(program, capsys):
    assert set(program.FLAGS) == PROGRAMS[program]
    with pytest.raises(SystemExit) as stopped:
        program.main(["program", "x", "--help"])
    assert not stopped.value.code
    printed = capsys.readouterr().out
    assert printed.startswith(program.__doc__.strip())
    assert f"python -m {program.__name__}" in printed
    for name in PROGRAMS[program]:
        assert f"--{name}" in printed.replace("--[no]", "--")


@pytest.mark.parametrize("program", PROGRAMS, ids=NAMES)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "b", "--colour=red"], "Unknown command line flag 'colour'"),
        (["a", "b", "c"], "not 3 arguments ('a', 'b', 'c')"),
        ([], "not 0 arguments (none)"),
        (["--seed=x", "--threads=x", "--data-dir"], "--help says which there are"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(program, capsys, arguments, words):
    assert program.main(["program", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxequi: ")
    assert words in error
    assert error.count("\n") == 1


def test_flags_come_before_or_behind_and_are_forgotten(tmp_path, capsys):
    """Two runs in one process, the second with the defaults of the first's flags."""
    shots = ["--shots", "2", "--seed=3", "--independent"]
    for arguments in (["fewshot", *shots, "none", "out"], ["fewshot", "none", "out", *shots]):
        assert fewshot_subset.main(arguments) == 2
        assert "cannot list none" in capsys.readouterr().err
    assert fewshot_subset.main(["fewshot", "none", "out"]) == 2
    assert "give --shots=10, 20 or 50" in capsys.readouterr().err


def test_the_program_runs_as_a_module(tmp_path):
    """Through absl, which prints no traceback and passes the exit code on."""
    command = [sys.executable, "-m", "jaxequi.prepare.fewshot_subset", "none", "out", "--shots=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "jaxequi: cannot list none: No such file or directory\n"
