"""A page of results: a table in Markdown, of which each row says how it was made."""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Callable, Iterable, Sequence

from jaxequi.errors import Refusal
from jaxequi.runs import table
from jaxequi.train import provenance

HEAD = ("config", "seeds", "commit", "date", "hardware", "command")
COMMIT = 12  # of 40 digits
RUNS = ("--config.init_from", "--config.checkpoint")  # which run a command judges
OF_A_SEED = ("--workdir", "--config.seed")


def write(folders: Sequence[pathlib.Path], file: pathlib.Path) -> pathlib.Path:
    """Write the table of runs (`runs.table`) as a page; return its path.

    Behind the numbers stand the config, the seeds, and what `about.json` says of commit, date,
    hardware and command. Numbers that the config says were published stand in brackets. A page that
    is written again keeps its heading.

    Raises:
      ValueError: a folder holds no run or says not how it was made, or the page cannot be written.
    """
    if file.suffix != ".md":
        raise Refusal(f"--markdown={file}: it is a page of Markdown; give a name that ends in .md")
    rows = table.rows(table.join([table.read(folder) for folder in folders]))
    head, *body = table.cells(rows)
    lines = [[*head, *HEAD]]
    for cells, row in zip(body, rows, strict=True):
        lines.append([*map(_beside_published(row), head, cells), *_made(row)])
    text = (
        f"{_heading(file)}\n\n"
        "Mean ± standard deviation (number of seeds). A command runs with `--config.seed=` each of "
        "its row's seeds;\nRUN is the run that the command before made. Written from the runs by\n"
        f"`python -m jaxequi.report RUN RUN ... --markdown={file.name}`.\n\n{table.markdown(lines)}"
    )
    text = text.replace(" ± ", "\u00a0±\u00a0")  # a narrow column does not part them
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError as error:
        raise Refusal(
            f"{file} cannot be written: {error.strerror}; give another --markdown"
        ) from error
    return file


def _heading(file: pathlib.Path) -> str:
    if file.is_file():
        first = file.read_text().partition("\n")[0]
        if first.startswith("# "):
            return first
    title = file.stem.replace("_", " ").replace("-", " ")
    return f"# {title[:1].upper()}{title[1:]}"


def _made(row: table.Row) -> list[str]:
    """The cells of `HEAD`; where the runs of a row differ, each value once."""
    runs = [run for seed in row.runs for run in seed]
    abouts = [_about(run.folder) for run in runs]

    def told(value: Callable[[dict[str, str]], str], between: str = ", ") -> str:
        return between.join(dict.fromkeys(map(value, abouts)))

    def hardware(about: dict[str, str]) -> str:
        versions = f"JAX {about['jax']}, Python {about['python']}"
        return f"{about['devices']}, {about['cores']} cores, {versions}"

    return [
        told(lambda about: f"`{_config(about['command'])}`", "<br>"),
        ", ".join(map(str, sorted({seed[0].config["seed"] for seed in row.runs}))),
        told(lambda about: f"`{_short(about['commit'])}`"),
        told(lambda about: about["date"][:10]),
        told(hardware, "<br>"),
        told(lambda about: f"`{_of_any_seed(about['command'])}`", "<br>"),
    ]


def _about(folder: pathlib.Path) -> dict[str, str]:
    about = provenance.read(folder)
    told = {name: str(about.get(name) or "") for name in ("command", "commit", "date", "devices")}
    versions = about.get("versions") or {}
    told |= {"cores": str(about.get("cores") or ""), **{k: str(v) for k, v in versions.items()}}
    missing = [name for name in (*told, "jax", "python") if not told.get(name)]
    if missing or not _config(told["command"]):
        what = f"no {', '.join(missing)}" if missing else f"the command {told['command']!r}"
        raise Refusal(
            f"{folder} says not how it was made: {provenance.ABOUT_FILE} has {what}; a row of a "
            "page names the command with --config, the commit and the machine. Run it again by "
            "python -m jaxequi.main from a checkout, or leave it out"
        )
    return told


def _words(command: str) -> Iterable[tuple[str, str]]:
    """The words of a command as name and value; the name is "" where the word is no such flag."""
    words = iter(shlex.split(command))
    for word in words:
        name, equals, value = word.partition("=")
        if not word.startswith("-") or (
            not equals and name.lstrip("-") not in ("config", "workdir")
        ):
            yield "", word
        else:
            yield f"--{name.lstrip('-')}", value if equals else next(words, "")


def _config(command: str) -> str:
    return next((value for name, value in _words(command) if name == "--config"), "")


def _of_any_seed(command: str) -> str:
    """Leave out what differs between the seeds of a row."""
    kept = [
        value if not name else f"{name}={'RUN' if name in RUNS else value}"
        for name, value in _words(command)
        if name not in OF_A_SEED
    ]
    return " ".join(map(_quoted, kept))


def _quoted(word: str) -> str:
    """A word as a shell reads it, in double quotes where single ones stand in it."""
    if "'" in word and not {*'"$`\\!'} & {*word}:
        return f'"{word}"'
    return shlex.quote(word)


def _short(commit: str) -> str:
    digits, dash, state = commit.partition("-")
    return f"{digits[:COMMIT]}{dash}{state}"


def _beside_published(row: table.Row) -> Callable[[str, str], str]:
    """(title, cell) -> the cell, and behind it what the row's runs say was published."""
    published: dict[str, float] = {}
    for seed in row.runs:
        for run in seed:
            published |= run.config.get("published") or {}

    def cell(title: str, text: str) -> str:
        return f"{text} (published {published[title]})" if text and title in published else text

    return cell
