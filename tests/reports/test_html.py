"""The report: one page, nothing fetched, nothing run, everything escaped, and words that the figures carry."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from kd_mlflow.reports import figures
from kd_mlflow.reports.html import render
from kd_mlflow.reports.verdict import verdict
from tests.reports.builders import NO_GPU, make_views, said_of

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


def compared(both: int, student_alone: int, control_alone: int, images: int = 400, val: float = 0.0) -> str:
    """The verdict on a student and a control, by the test images that both, or one alone, name rightly."""
    student, control = np.zeros(images, int), np.zeros(images, int)
    student[: both + student_alone] = 1
    control[:both] = control[both + student_alone : both + student_alone + control_alone] = 1
    made = []
    for view, right in zip(make_views(["a", "b"]), (student, control, student), strict=True):
        figures = {"test/accuracy": right.mean(), "val/accuracy": 0.5 + val * (view.role == "student")}
        predictions = {"test": said_of(right, np.ones(images, int))}
        made.append(replace(view, metrics=view.metrics | figures, predictions=predictions))
    return verdict(made)[-1]


def test_every_network_is_told_on_validation_and_test():
    views = make_views(["a", "b"])
    views[0] = replace(views[0], metrics={"val/accuracy": 0.9125, "test/accuracy": 0.875})
    assert verdict(views)[0] == "Teacher (resnet34): 91.25% accuracy on validation, 87.50% accuracy on test."


def test_gain_beyond_chance_is_called_better():
    assert compared(both=220, student_alone=80, control_alone=20, val=0.13) == (
        "The distilled student is better than the labels-only control on test by more than chance: accuracy differs by "
        "+0.1500 (95 % interval +0.1025 to +0.1950; exact McNemar test of the images that one of the two alone "
        "names rightly, 80 to 20: p < 0.001; it rests on one seed). On validation they differ by +0.1300. With one "
        "seed the interval knows only the drawing of images, not how trainings vary."
    )


def test_networks_that_disagree_much_are_not_told_apart_by_the_same_gain_as_ones_that_agree():
    torn = compared(both=150, student_alone=96, control_alone=84)
    assert torn.startswith(
        "The distilled student is not told apart from the labels-only control on test: accuracy differs by +0.0300 "
    )
    assert "96 to 84: p = 0.41" in torn
    # Unpaired, both have the same accuracies and the same standard error, of 3.4 points.
    steady = compared(both=234, student_alone=12, control_alone=0)
    assert "is better than the labels-only control on test by more than chance: accuracy differs by +0.0300" in steady
    assert "12 to 0: p < 0.001" in steady


def test_loss_beyond_chance_is_called_worse():
    sentence = compared(both=280, student_alone=5, control_alone=25, val=0.02)
    assert "is worse than the labels-only control on test by more than chance: accuracy differs by −0.0500" in sentence
    assert "On validation they differ by +0.0200." in sentence


def test_tie_is_not_told_apart():
    assert "not told apart from the labels-only control on test: accuracy differs by +0.0000" in compared(280, 10, 10)


@pytest.mark.parametrize("roles", [("teacher",), ("control",), ("teacher", "student")])
def test_without_student_and_control_there_is_no_comparison(roles):
    lines = verdict(make_views(["a", "b"], roles=roles))
    assert len(lines) == len(roles)
    assert not any("labels-only" in line for line in lines)


def test_network_that_was_not_measured_is_said_to_be():
    (line,) = verdict([replace(make_views(["a", "b"])[0], metrics={})])
    assert line == "Teacher (resnet34): not measured."
