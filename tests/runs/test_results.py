"""Pages of results: what the program writes, and that each row of the repository's can be made."""

from __future__ import annotations

import importlib
import json
import pathlib
import re
import shlex

import pytest

from jaxequi import cli, main
from jaxequi.errors import Refusal
from jaxequi.runs import results

ROOT = pathlib.Path(__file__).parent.parent.parent
PAGES = [
    p for p in sorted((ROOT / "docs/results").glob("*.md")) if p.stem not in ("index", "published")
]
ABOUT = {
    "command": "python -m jaxequi.main --config=configs/sie.py:sie",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "date": "2026-11-28T01:02:03+00:00",
    "devices": "1 x cpu (cpu)",
    "cores": 2,
    "versions": {"python": "3.11.7", "jax": "0.10.2"},
}


def table_of(page):
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    cells = ([c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
    head, _, *rows = cells
    return [dict(zip(head, row, strict=True)) for row in rows]


def code(cell):
    """What stands in the lines of a cell, each of them in backquotes."""
    found = [re.fullmatch("`(.+)`", line) for line in cell.replace("\\|", "|").split("<br>")]
    assert all(found), cell
    return [one[1] for one in found]


ROWS = [(page.stem, n, row) for page in PAGES for n, row in enumerate(table_of(page))]


@pytest.mark.parametrize(("name", "n", "row"), ROWS, ids=[f"{p}-{n}" for p, n, _ in ROWS])
def test_a_row_can_be_made_again(name, n, row, monkeypatch):
    monkeypatch.chdir(ROOT)
    configs, commands = code(row["config"]), code(row["command"])
    seeds = [int(seed) for seed in row["seeds"].split(", ")]
    assert seeds == sorted({*seeds})
    by_hand = r"not recorded; written down at `[0-9a-f]{12}`"
    assert re.fullmatch(rf"{by_hand}|(`[0-9a-f]{{12}}(-dirty)?`(, )?)+", row["commit"])
    for day in row["date"].split(", "):
        assert re.fullmatch(r"2\d\d\d-\d\d-\d\d", day)
    assert row["hardware"]
    named = []
    for command in commands:
        python, dash, module, *given = shlex.split(command)
        assert (python, dash, module) == ("python", "-m", "jaxequi.main")
        cli.arguments(["main", *given], main.FLAGS, [], main.__doc__)
        config, _, file = cli.config(main.FLAGS)
        assert config.method.name
        named.append(file)
    assert list(dict.fromkeys(named)) == configs
    file, _, words = configs[0].partition(":")
    importlib.import_module(file.removesuffix(".py").replace("/", ".")).get_config(words or None)


def run(folder, config, metrics, **about):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 10, **metrics}) + "\n")
    (folder / "about.json").write_text(json.dumps(ABOUT | about))
    return folder


def test_seeds_are_joined_and_a_row_says_how_it_was_made(tmp_path):
    folders = []
    for seed, value in enumerate([0.5, 0.7]):
        trained = run(
            tmp_path / f"sie{seed}",
            {"seed": seed, "method": {"name": "sie"}, "published": {"top-1": 0.9}},
            {},
            command=f"python -m jaxequi.main --config=configs/sie.py:sie --config.seed={seed} "
            f"--workdir {tmp_path}/sie{seed} --config.batch_size=8 "
            "'--config.train.augment=('\"'\"'a|b'\"'\"',)'",
        )
        method = {"name": "linear", "heads": {"rotation": ["deep"]}}
        judged = {"init_from": str(trained), "method": method, "cache": {"on": True}}
        folders.append(
            run(
                tmp_path / f"heads{seed}",
                {**judged, "seed": 0, "total_steps": 9},
                {"val/heads/r2/rotation-all-deep": value, "val/classification/top1": 0.25},
                command="python -m jaxequi.main --config=configs/evals.py "
                f"--config.checkpoint={trained}",
                commit="f" * 40 + "-dirty",
                date="2026-11-29T00:00:00+00:00",
            )
        )
    page = results.write(folders, tmp_path / "pages" / "split_networks.md")
    assert page.read_text().startswith("# Split networks\n")
    assert "--markdown=split_networks.md" in page.read_text()
    assert str(tmp_path) not in page.read_text()
    assert table_of(page) == [
        {
            "method": "sie",
            "encoder": "online",
            "part": "all",
            "protocol": "clean, 9 steps",
            "top-1": "0.250\u00a0±\u00a00.000 (2) (published 0.9)",
            "rotation R2": "0.600\u00a0±\u00a00.141 (2)",
            "config": "`configs/sie.py:sie`<br>`configs/evals.py`",
            "seeds": "0, 1",
            "commit": "`0123456789ab`, `ffffffffffff-dirty`",
            "date": "2026-11-28, 2026-11-29",
            "hardware": "1 x cpu (cpu), 2 cores, JAX 0.10.2, Python 3.11.7",
            "command": "`python -m jaxequi.main --config=configs/sie.py:sie --config.batch_size=8 "
            "\"--config.train.augment=('a\\|b',)\"`<br>"
            "`python -m jaxequi.main --config=configs/evals.py --config.checkpoint=RUN`",
        }
    ]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (None, "has no command, commit, date, devices, cores, jax, python"),
        ({"commit": None}, "has no commit"),
        ({"command": "python notebook.py"}, "has the command 'python notebook.py'"),
    ],
)
def test_a_run_of_unknown_origin_is_no_row(about, message, tmp_path):
    folder = run(tmp_path / "run", {"seed": 0, "method": {"name": "sie"}}, {"val/knn/top1": 0.5})
    if about is None:
        (folder / "about.json").unlink()
    else:
        (folder / "about.json").write_text(json.dumps(ABOUT | about))
    with pytest.raises(Refusal, match=re.escape(message)):
        results.write([folder], tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()


def test_a_page_that_is_written_again_keeps_its_heading(tmp_path):
    folder = run(tmp_path / "run", {"seed": 0, "method": {"name": "sie"}}, {"val/knn/top1": 0.5})
    page = results.write([folder], tmp_path / "page.md")
    written = page.read_text()
    page.write_text(written.replace("# Page\n", "# SIE's neighbours\n").replace("0.500", "0.600"))
    results.write([folder], page)
    assert page.read_text() == written.replace("# Page\n", "# SIE's neighbours\n")


def test_a_page_is_markdown(tmp_path):
    with pytest.raises(Refusal, match=r"ends in \.md"):
        results.write([tmp_path], tmp_path / "page.html")
