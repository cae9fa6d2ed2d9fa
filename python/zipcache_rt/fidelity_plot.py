"""The plot of a Report: KL over bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import plotting
from .fidelity_report import Report, Result
from .plotting import FLOOR, OURS, REFERENCE, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save(report: Report, path: Path) -> None:
    """Writes the plot. Raises ArgumentError (see plotting.check()) and FileError."""
    plotting.check(path)
    plotting.write(draw(report), path)


def draw(report: Report) -> Figure:
    """One point a policy: mean KL, with its 95 % confidence, over all-in bits of compressed tokens."""
    figure = plotting.new_figure(8, 5)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    plotting.quiet(axes)
    axes.set_xlabel("all-in bits per element of compressed tokens")
    axes.set_ylabel("mean KL(f16 || policy), nats")
    model, _, texts = report.title.partition("; ")
    axes.set_title(plain(f"{model}\n{texts}"), loc="left", fontsize=11)
    _floor(axes, report.control)
    shown = [result for result in report.results if result.figures.kl_mean > 0]
    for result in shown:
        _point(axes, result)
    axes.margins(x=0.12, y=0.15)
    points = [(result.bits, result.figures.kl_mean, result.name) for result in shown]
    plotting.label_points(figure, axes, points)
    if hidden := [result.name for result in report.results if result not in shown]:
        axes.text(0.99, 0.01, plain(f"KL is 0: {', '.join(hidden)}"), transform=axes.transAxes, ha="right", fontsize=8)
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
