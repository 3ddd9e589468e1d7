"""Axes, ticks, legends and the picture itself, the same for every figure."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from optuna.trial import FrozenTrial

from kd_mlflow.search.figures.view import DPI, HEIGHT, LABEL_LENGTH, WIDTH, Scale, numbers_of, plain_text


def single_panel(title: str, height: float = HEIGHT, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(plain_text(title), x=0.01, ha="left")
    axes = figure.subplots()
    draw_grid(axes)
    return figure, axes


def draw_grid(axes: Axes) -> None:
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)


def draw_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        place = {"loc": "outside lower center", "ncols": len(handles)}
        for handle in figure.legend(handles, labels, frameon=False, fontsize=9, **place).legend_handles:
            handle.set_alpha(1)


def draw_dots(axes: Axes, trials: Sequence[FrozenTrial], value: Callable[[FrozenTrial], float], **look: str) -> None:
    if trials:
        axes.scatter(numbers_of(trials), [value(trial) for trial in trials], s=22, zorder=3, **look)


def set_axis(axes: Axes, which: str, scale: Scale, values: Sequence[float]) -> None:
    """Name, scale and few enough ticks for a panel."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_label_text(plain_text(scale.name))
    if not len(values):
        axis.set_ticks([])
        return
    low, high = min(values), max(values)
    if scale.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        axis.set_minor_locator(NullLocator())
    ticks = ticks_of(scale, low, high, 4)
    places, labels = [place for place, _ in ticks], [plain_text(label) for _, label in ticks]
    crowded = which == "x" and sum(len(label) + 2 for label in labels) > 26
    look = {"rotation": 90 if len(labels) > 8 else 35, "ha": "center" if len(labels) > 8 else "right"}
    axis.set_ticks(places, labels, fontsize=8 if len(labels) < 12 else 6, **(look if crowded else {}))
    if crowded and len(labels) <= 8:
        axis.set_tick_params(pad=1)
    if scale.choices:
        (axes.set_xlim if which == "x" else axes.set_ylim)(-0.4, len(scale.choices) - 0.6)


def ticks_of(scale: Scale, low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Where labels stand between two values, about ``most`` of them; every choice has its own."""
    if scale.choices:
        cut = [one if len(one) <= LABEL_LENGTH else f"{one[: LABEL_LENGTH - 1]}…" for one in scale.choices]
        return [(float(place), label) for place, label in enumerate(cut)]
    if high <= low:
        return [(low, f"{low:.6g}")]
    if scale.log:
        places = _log_ticks(low, high, most)
    else:
        slack = 1e-9 * (high - low)
        found = MaxNLocator(most, integer=scale.whole, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        places = [place for place in found if low - slack <= place <= high + slack]
    digits = max(3, 1 + math.ceil(math.log10(max(abs(low), abs(high)) / (high - low)))) + 1
    return [(float(place), f"{round(place, 12) + 0.0:.{digits}g}") for place in places]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers in [low, high], powers of ten alone where they suffice."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        found = [digit * 10.0**power for power in powers for digit in digits]
        found = [place for place in found if low * (1 - 1e-9) <= place <= high * (1 + 1e-9)]
        if len(found) >= 3 or (len(found) == 2 and digits == (1, 2, 5)):
            return found[:: -(-len(found) // most)]
    return [low, high]


def to_png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, facecolor="white")
    return out.getvalue()
