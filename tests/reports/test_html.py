"""The report: one page, nothing fetched, nothing run, everything escaped, and words that the figures carry."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from kd_mlflow.reports import figures
from kd_mlflow.reports.html import render
from kd_mlflow.reports.verdict import standard_error, verdict
from tests.reports.builders import NO_GPU, make_views

HOSTILE = ["</style><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b", "plain"]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Collects tags, attributes and headings, and checks that every tag is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.headings: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def page_of(classes: list[str], title: str = "digits: student", config: str = "data: digits\n", notes=()) -> str:
    views = make_views(classes)
    drawn = {
        "accuracy": figures.accuracy_curves(views),
        "loss": figures.loss_curves(views),
        "confusion": figures.confusion(views[-1], classes, normalised=False),
        "per_class_f1": figures.per_class_f1(views, classes),
        "reliability": figures.reliability(views[-1]),
        "samples": figures.accuracy_curves(views),
    }
    return render(title, views, classes, {n: figures.to_png(f) for n, f in drawn.items()}, config, list(notes))


@pytest.fixture(scope="module")
def hostile() -> str:
    return page_of(HOSTILE, HOSTILE[0], "name: <script>alert(2)</script>\n", [HOSTILE[1]])


def test_page_has_its_sections_in_order():
    reader = Reader(page_of(["a", "b"], notes=["The teacher is weak."]))
    assert reader.headings == [
        "Result",
        "Quality",
        "Efficiency",
        "Curves",
        "Confusion",
        "Per class",
        "Calibration",
        "Samples",
        "Notes",
        "Configuration",
    ]
    assert reader.open == []


def test_page_without_notes_and_figures_leaves_their_headings_out():
    page = render("t", make_views(["a", "b"])[:1], ["a", "b"], {}, "", [])
    assert Reader(page).headings == ["Result", "Quality", "Efficiency", "Configuration"]


@pytest.mark.fault("scripts and addresses in the data of a report", "the page fetches nothing and runs nothing")
def test_page_fetches_nothing_and_runs_nothing(hostile: str):
    reader = Reader(hostile)
    assert not reader.tags & {"script", "link", "iframe", "object", "base", "form"}
    assert not [name for name, _ in reader.attributes if name.startswith("on") or name == "href"]
    sources = [value for name, value in reader.attributes if name == "src"]
    assert len(sources) == 6
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert "url(" not in hostile
    assert "@import" not in hostile


@pytest.mark.fault("HTML in class names, titles, notes", "escaped in the report")
def test_names_titles_notes_and_configuration_are_escaped(hostile: str):
    assert "<script" not in hostile
    assert "onerror" in hostile  # as text
    assert "a &amp; b" in hostile
    assert Reader(hostile).open == []


def test_pictures_are_whole():
    for coded in re.findall(r'base64,([^"]+)"', page_of(["a", "b"])):
        png = base64.b64decode(coded, validate=True)
        assert png.startswith(b"\x89PNG")
        assert png.endswith(b"IEND\xaeB`\x82")


def test_wide_figure_is_scrolled_and_a_narrow_one_shrinks():
    names = [f"class {number:03d}" for number in range(100)]
    views = make_views(names, images=300)
    pngs = {
        "confusion": figures.to_png(figures.confusion(views[2], names, normalised=False)),
        "accuracy": figures.to_png(figures.accuracy_curves(views)),
    }
    page = render("t", views, names, pngs, "", [])
    assert '<div class="scroll"><img class="wide" alt="confusion"' in page
    assert '<img alt="accuracy"' in page


def test_page_is_light_whatever_the_system_prefers():
    page = page_of(["a", "b"])
    assert "color-scheme: light" in page
    assert "background: #fff" in page


def test_reason_for_missing_figures_is_given():
    page = page_of(["a", "b"])
    assert page.count(NO_GPU) == 1
    assert "<td>not measured</td>" in page


def compared(control: float, student: float, control_val: float = 0.5, student_val: float = 0.5) -> str:
    views = make_views(["a", "b"], images=400)
    told = [
        replace(view, metrics=view.metrics | {"test/accuracy": test, "val/accuracy": val})
        for view, test, val in zip(views, (0.9, control, student), (0.9, control_val, student_val), strict=True)
    ]
    return verdict(told)[-1]


def test_every_network_is_told_on_validation_and_test():
    views = make_views(["a", "b"])
    views[0] = replace(views[0], metrics={"val/accuracy": 0.9125, "test/accuracy": 0.875})
    assert verdict(views)[0] == "Teacher (resnet34): 91.25% accuracy on validation, 87.50% accuracy on test."


def test_gain_beyond_two_standard_errors():
    sentence = compared(control=0.60, student=0.75, control_val=0.60, student_val=0.73)
    assert "beat the labels-only control on test by 15.00 points (+13.00 on validation)" in sentence
    assert "on 400 images is 3.27 points: this one is more than two of them; and it rests on one seed." in sentence


def test_gain_within_chance_is_called_that():
    sentence = compared(control=0.70, student=0.71)
    assert "beat the labels-only control on test by 1.00 points" in sentence
    assert "this one is within two of them, not told apart from chance; and it rests" in sentence


def test_loss_is_said_plainly():
    sentence = compared(control=0.75, student=0.70, student_val=0.52)
    assert "did not beat the labels-only control: on test it is 5.00 points below (+2.00 on validation)" in sentence


def test_tie_is_a_tie():
    assert "is level with the labels-only control on test (+0.00 on validation)" in compared(0.7, 0.7)


@pytest.mark.parametrize("roles", [("teacher",), ("control",), ("teacher", "student")])
def test_without_student_and_control_there_is_no_comparison(roles):
    lines = verdict(make_views(["a", "b"], roles=roles))
    assert len(lines) == len(roles)
    assert not any("beat" in line for line in lines)


def test_network_that_was_not_measured_is_said_to_be():
    (line,) = verdict([replace(make_views(["a", "b"])[0], metrics={})])
    assert line == "Teacher (resnet34): not measured."


def test_standard_error_is_binomial():
    assert standard_error(0.6, 0.75, 400) == pytest.approx(math.sqrt((0.24 + 0.1875) / 400))
    assert standard_error(1.0, 1.0, 400) == 0
