"""Names that come from data stand in a report as they are."""

from __future__ import annotations

import html.parser
import io
import json
import re

import numpy as np

from jaxequi.data.errors import shown
from jaxequi.objectives.regression import POOLED_R2_FLOOR
from jaxequi.runs import page, report, table
from jaxequi.runs.page import Panel


def test_class_names_are_no_formulas():
    names = ["$\\frac{", "a$b^$", shown("two\nlines"), shown("caf\udce9")]
    arrays = {"views": np.zeros((4, 1, 8, 8, 3)), "label": np.arange(4), "class_names": names}
    stream = io.BytesIO()
    figure = report.examples(arrays)
    figure.savefig(stream, format="png", dpi=30)
    assert [axis.get_title() for axis in figure.axes[:4]] == names
    assert stream.getvalue()[:4] == b"\x89PNG"


def test_what_never_changes_is_no_curve_and_kinds_share_an_axis():
    rows = [
        {
            "step": step,
            "loss": 3.0 - step,
            "accuracy": 0.2 * step,
            "val/knn/k": 20,
            "val/knn/top1": 0.1 * step,
            "gradient_norm": step**2,
        }
        for step in (1, 2, 3)
    ]
    found = report.learning_curves(rows, ["val"], ["accuracy"])
    drawn = {p.file: (p, figure.axes[0]) for p, figure in found.items()}
    assert list(drawn) == ["curve_loss", "curve_top1", "curve_gradient_norm"]
    assert [panel.folded for panel, _ in drawn.values()] == [False, False, True]
    panel, axis = drawn["curve_top1"]
    lines = {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
    assert lines == {"train": [0.2, 0.4, 0.2 * 3], "val knn": [0.1, 0.2, 0.1 * 3]}
    assert panel.alt == "top1 over 3 steps: train from 0.2 to 0.6; val knn from 0.1 to 0.3"


EVIL = "<script>alert('x')</script>"


class Reader(html.parser.HTMLParser):
    """Collects what an accessibility check asks of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_is_whole_and_what_data_says_stays_text():
    panel = Panel(EVIL, "a", f'{EVIL}" onload="x', folded=False)
    text = page.render(
        page.Page(
            run=EVIL,
            what=EVIL,
            facts=[("classes", EVIL)],
            numbers=[page.Number(EVIL, 0.5, chance=0.1, published=0.75), page.Number("a", 1.0)],
            compared=[["run", "top-1"], [EVIL, "0.500"]],
            panels=[(panel, b"1"), (Panel("b", "b", "c", folded=True), b"2")],
            metrics={EVIL: 1.0},
            config={EVIL: EVIL},
        )
    )
    read = Reader(text)
    assert read.open == []
    names = [tag for tag, _ in read.tags]
    assert "script" not in names
    assert "chance 0.1" in text
    assert "published 0.75" in text
    assert dict(read.tags)["html"] == {"lang": "en"}
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    assert [set(one) for one in images] == [{"alt", "src"}] * 2
    assert images[0]["alt"] == f'{EVIL}" onload="x'
    assert all(one["src"].startswith("data:image/png;base64,") for one in images)
    headings = [int(tag[1]) for tag in names if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert set(headings[1:]) == {2}
    assert {attributes["scope"] for tag, attributes in read.tags if tag == "th"} == {"col", "row"}


def test_examples_are_shown_behind_the_photometry():
    arrays = {"views": np.full((2, 1, 4, 4, 3), 51, np.uint8), "class_names": np.array(["a", "b"])}
    arrays["label"], arrays["mask"] = np.array([0, 1]), np.ones(2, bool)
    train = {"augment": ["solarize(p=1.0, threshold=25)|normalise('imagenet')"], "mix": ""}
    seen = report.as_seen(arrays, {"train": train, "seed": 0})
    np.testing.assert_allclose(seen["views"], 1 - 51 / 255, atol=1e-6)  # inverted, not normalised


def test_numbers_that_matter_stand_beside_a_guess(tmp_path):
    rows = [{"step": 1, "val/knn/top1": 0.5, "val/knn/k": 20, "val/rank/effective_rank": 7.0}]
    rows[0] |= {
        f"val/online/{name}/representation{suffix}": value
        for name, suffix, value in (
            ("top1", "", 0.25),
            ("r2", "-inv", 0.3),
            ("r2", "-equi", 0.7),
            ("r2", "", 0.6),
        )
    }
    run = table.Run(tmp_path, {"published": {"kNN": 0.9}}, rows)
    assert report.headlines(run, classes=8) == [
        page.Number("top-1", 0.25, 1 / 8),
        page.Number("kNN", 0.5, 1 / 8, 0.9),
        page.Number("rotation R2, equivariant part", 0.7, POOLED_R2_FLOOR),
    ]


def test_classes_stand_in_the_order_of_their_accuracy():
    logits = np.eye(3)[[0, 0, 1, 2, 0, 2]][:, None]
    names = np.array(["$a", "b", "c"])
    figure = report.by_class(
        {"logits": logits, "label": np.array([0, 0, 1, 1, 2, 2]), "class_names": names}
    )
    [axis] = figure.axes
    assert [bar.get_width() for bar in axis.patches] == [0.5, 0.5, 1.0]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["b", "c", "$a"]
    assert not axis.get_yticklabels()[2].get_parse_math()


def test_heads_on_a_frozen_network_are_judged_class_by_class(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n')
    logits = np.eye(3)[[0, 0, 1, 2, 0, 2]][:, None]
    np.savez(
        tmp_path / "features_val.npz",
        **{
            "heads/classification-all-linear": logits,
            "heads/rotation-all-deep": np.ones((6, 1, 4)),
        },
        label=np.array([0, 0, 1, 1, 2, 2]),
        class_names=["a", "b", "c"],
    )
    page = report.write(tmp_path).read_text()
    assert "Accuracy by class (val, all-linear)" in page
    assert "Accuracy of each class of val, all-linear, the hardest first: 0.667 over all" in page
    assert [f.name for f in (tmp_path / "figures").iterdir()] == ["classes_val_all-linear.png"]


def test_a_report_says_where_a_run_comes_from(tmp_path):
    config = {"method": {"name": "sie"}, "backbone": {"name": "vit"}, "batch_size": 8, "seed": 3}
    run = table.Run(tmp_path, config, [{"step": 5}])
    assert report.facts(run, None)[-1] == ("seed", "3")
    origin = {"command": "python -m jaxequi.main", "commit": "0" * 40, "date": "2026-11-27"}
    (tmp_path / "about.json").write_text(json.dumps({**origin, "devices": "1 x cpu", "cores": 2}))
    assert report.facts(run, None)[-4:] == [*origin.items(), ("devices", "1 x cpu")]
    (tmp_path / "about.json").write_text("[")
    assert report.facts(run, None)[-1] == ("seed", "3")
