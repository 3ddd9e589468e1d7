"""What is drawn: the values, the colours, the labels; and that any class name can be drawn."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from kd_mlflow.reports import figures
from tests.reports.builders import make_views

TEN = [str(number) for number in range(10)]
ODD = ["cash $x_1$ and $y$", "$", "line\nbreak", r"\frac{1}{2}", "<b>bold</b>", "a_very_long_name_" * 9, "", "%d {x}"]


@pytest.fixture(scope="module")
def views():
    return make_views(TEN)


def lines_of(figure: Figure) -> dict[str, object]:
    return {
        line.get_label(): line for axes in figure.axes for line in axes.lines if not line.get_label().startswith("_")
    }


def size_of(figure: Figure) -> tuple[int, int]:
    return Image.open(io.BytesIO(figures.to_png(figure))).size


def test_accuracy_curves_hold_the_history_of_every_network(views):
    lines = lines_of(figures.accuracy_curves(views))
    assert set(lines) == {f"{v.role}, {split}" for v in views for split in ("training", "validation")}
    for view in views:
        drawn = lines[f"{view.role}, validation"].get_xydata().tolist()
        assert drawn == [list(point) for point in view.history["val/accuracy"]]


def test_each_role_has_its_colour_in_every_figure(views):
    for figure in (figures.accuracy_curves(views), figures.loss_curves(views), figures.per_class_f1(views, TEN)):
        for label, line in lines_of(figure).items():
            assert to_hex(line.get_color()) == figures.COLOURS[label.split(",")[0]]
    assert len({figures.COLOURS[role] for role in ("teacher", "control", "student")}) == 3


def test_loss_shows_cross_entropy_of_all_and_the_distillation_term_apart(views):
    first, second = figures.loss_curves(views).axes
    assert "student, distillation term" not in [line.get_label() for line in first.lines]
    assert [line.get_label() for line in second.lines] == ["student, distillation term", "student, total"]
    assert second.lines[0].get_ydata().tolist() == [value for _, value in views[2].history["train/kd"]]


def test_loss_without_a_student_is_one_panel(views):
    assert len(figures.loss_curves(views[:2]).axes) == 1


def test_selected_epoch_is_ringed(views):
    (axes,) = figures.accuracy_curves(views[:1]).axes
    ring = axes.lines[-1]
    assert ring.get_xydata().tolist() == [[10.0, dict(views[0].history["val/accuracy"])[10]]]


def test_run_of_one_epoch_and_run_without_history_can_be_drawn():
    for epochs in (1, 0):
        for draw in (figures.accuracy_curves, figures.loss_curves):
            assert size_of(draw(make_views(TEN, epochs=epochs)))[0] > 300


def test_confusion_writes_counts_or_row_shares_into_its_cells(views):
    counts = figures.confusion(views[2], TEN, normalised=False).axes[0]
    assert [text.get_text() for text in counts.texts] == [str(n) for row in views[2].confusion for n in row]
    shares = figures.confusion(views[2], TEN, normalised=True).axes[0]
    assert np.allclose(shares.images[0].get_array().sum(axis=1), 1)


def test_confusion_of_a_class_without_images_has_an_empty_row():
    view = replace(make_views(["a", "b"])[0], confusion=[[3, 1], [0, 0]])
    axes = figures.confusion(view, ["a", "b"], normalised=True).axes[0]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]


def test_hundred_classes_have_no_cell_text_and_labels_that_can_be_read():
    names = [f"class {number:03d}" for number in range(100)]
    views = make_views(names, images=500)
    axes = figures.confusion(views[2], names, normalised=True).axes[0]
    assert not axes.texts
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    for drawn in (axes, figures.per_class_f1(views, names).axes[0]):
        assert all(label.get_fontsize() >= 6.5 for label in drawn.get_yticklabels())


def test_labels_of_a_hundred_classes_do_not_overlap():
    names = [f"class {number:03d}" for number in range(100)]
    figure = figures.confusion(make_views(names, images=500)[2], names, normalised=False)
    figure.savefig(io.BytesIO(), format="png")
    boxes = sorted((label.get_window_extent() for label in figure.axes[0].get_yticklabels()), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))


def test_reliability_draws_accuracy_by_bin_and_names_the_error(views):
    figure = figures.reliability(views[2])
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [r["accuracy"] for r in views[2].reliability if r["count"]]
    assert f"{views[2].metrics['test/calibration_error']:.3f}" in figure.axes[0].get_title()


def test_per_class_f1_is_sorted_by_the_last_network(views):
    figure = figures.per_class_f1(views, TEN)
    drawn = lines_of(figure)["student"].get_xdata()
    assert list(drawn) == sorted(row["f1"] for row in views[2].per_class)
    order = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    by_class = {row["class"]: row["f1"] for row in views[0].per_class}
    assert lines_of(figure)["teacher"].get_xdata() == pytest.approx([by_class[name] for name in order])


def test_class_without_test_images_has_no_dot(views):
    rows = [row | {"f1": None} if row["class"] == "3" else row for row in views[2].per_class]
    figure = figures.per_class_f1([replace(views[2], per_class=rows)], TEN)
    assert np.isnan(lines_of(figure)["student"].get_xdata()).sum() == 1


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)


def test_samples_show_the_pixels_and_what_both_networks_say():
    images = pictures(2)
    figure = figures.samples(images, ["cat", "dog"], ["cat", "dog"], [0.9, 0.8], ["cat", "cat"], [0.7, 0.61])
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.images]
    assert titles == [
        "truth: cat\n✓ teacher: cat 0.90\n✓ student: cat 0.70",
        "truth: dog\n✓ teacher: dog 0.80\n✗ student: cat 0.61",
    ]
    assert np.array_equal(figure.axes[0].images[0].get_array(), images[0].transpose(1, 2, 0))


def test_samples_of_a_network_without_a_teacher():
    figure = figures.samples(pictures(5), ["cat"] * 5, None, None, ["dog"] * 5, [0.5] * 5)
    assert figure.axes[0].get_title(loc="left") == "truth: cat\n✗ network: dog 0.50"
    assert sum(bool(axes.images) for axes in figure.axes) == 5
    assert size_of(figure)[0] > 300


def test_any_class_name_is_drawn_as_it_is_written():
    views = make_views(ODD)
    drawn = [
        figures.confusion(views[2], ODD, normalised=False),
        figures.per_class_f1(views, ODD),
        figures.samples(pictures(8), ODD, ODD, [0.5] * 8, ODD[::-1], [0.5] * 8),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in drawn:
            assert size_of(figure)[0] > 300
    names = [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]
    assert names[:3] == ["cash $x_1$ and $y$", "$", "line break"]
    assert names[5].endswith("…")
    assert len(names[5]) == figures.NAME_LENGTH


def test_drawing_keeps_no_figure_open(views):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figures.to_png(figures.accuracy_curves(views))
    assert plt.get_fignums() == before
