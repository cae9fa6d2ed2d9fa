"""The plot of a Report: KL over bits. matplotlib is imported here only; it comes with the `plot` extra."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli
from ._core import ArgumentError, FileError
from .fidelity_report import Report, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
OURS, REFERENCE, FLOOR = "#1f6feb", "#8a8f98", "#c2552d"
# where a label may stand, in points from its point: the first place that is free wins
PLACES = [(8, 5), (8, -13), (-8, 5), (-8, -13), (8, 18), (8, -26), (-8, 18), (-8, -26), (8, 31), (-8, 31)]


def check(path: Path) -> None:
    """ArgumentError when no plot could be written there."""
    if path.suffix.lower() not in FORMATS:
        raise ArgumentError(f"the plot is {path.name!r}; accepted: a name that ends in {', '.join(FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ArgumentError("a plot needs matplotlib: pip install 'zipcache-rt[plot]'")


def save(report: Report, path: Path) -> None:
    """Writes the plot. Raises ArgumentError (see check()) and FileError."""
    check(path)
    figure = draw(report)
    try:
        figure.savefig(path, dpi=160)
    except OSError as error:
        raise FileError(f"cannot write the plot: {error}") from error


def draw(report: Report) -> Figure:
    """One point a policy: mean KL, with its 95 % confidence, over all-in bits of compressed tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_yscale("log")
    axes.set_axisbelow(True)
    axes.grid(True, which="major", color="#e4e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("all-in bits per element of compressed tokens")
    axes.set_ylabel("mean KL(f16 || policy), nats")
    model, _, texts = report.title.partition("; ")
    axes.set_title(_plain(f"{model}\n{texts}"), loc="left", fontsize=11)
    _floor(axes, report.control)
    shown = [result for result in report.results if result.figures.kl_mean > 0]
    for result in shown:
        _point(axes, result)
    axes.margins(x=0.12, y=0.15)
    _labels(figure, axes, shown)
    if hidden := [result.name for result in report.results if result not in shown]:
        axes.text(0.99, 0.01, _plain(f"KL is 0: {', '.join(hidden)}"), transform=axes.transAxes, ha="right", fontsize=8)
    return figure


def _point(axes: Axes, result: Result) -> None:
    mark: dict[str, Any] = {"marker": "o", "markersize": 8, "color": OURS, "zorder": 3}
    if result.options.partition(":")[0].partition(",")[0] in ("q8_0", "q4_0", "f16"):
        mark |= {"marker": "D", "markersize": 7, "color": REFERENCE}
    mean, half = result.figures.kl_mean, result.figures.kl_ci95
    down = min(half, 0.9 * mean)  # a log axis has no room below 0
    axes.errorbar(result.bits, mean, yerr=[[down], [half]], capsize=3, elinewidth=1, **mark)


def _floor(axes: Axes, control: Result) -> None:
    floor = control.figures.kl_mean
    if floor > 0:
        axes.axhline(floor, color=FLOOR, linewidth=1, linestyle="--")
    # in axes coordinates across, so that it moves no limits
    where: dict[str, Any] = {"transform": axes.get_yaxis_transform()} if floor > 0 else {"transform": axes.transAxes}
    text = f"{control.name}: {floor:.1e}" + (" (rounding alone)" if floor > 0 else "")
    axes.text(0.01, floor, text, color=FLOOR, fontsize=8, va="bottom", **where)


def _labels(figure: Figure, axes: Axes, results: list[Result]) -> None:
    """Each label beside its point, where no earlier label or point is."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # settles the limits: only then do labels have a place
    centres = [axes.transData.transform((result.bits, result.figures.kl_mean)) for result in results]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in centres]
    for result in results:
        at = (result.bits, result.figures.kl_mean)
        label = axes.annotate(_plain(result.name), at, xytext=PLACES[0], textcoords="offset points", fontsize=9)
        for x, y in PLACES:
            label.set_position((x, y))
            label.set_horizontalalignment("left" if x > 0 else "right")
            box = label.get_window_extent()
            if axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1) and not box.count_overlaps(taken):
                break
        taken.append(label.get_window_extent())


def _plain(text: str) -> str:
    return cli.harmless(text).replace("$", r"\$")  # no mathematics
