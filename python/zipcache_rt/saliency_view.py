"""Saliency for the eye: coloured text and lists on a terminal, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import cli, plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .saliency import Saliency

# colours of ranks, the least salient first: backgrounds that black and white text can be read on
SHADES = ("#eef2f7", "#d3e3f8", "#a9cdf5", "#74aef0", "#3f8ae6", "#1d62c4", "#0b3d91")
UPPER = (0.30, 0.50, 0.65, 0.78, 0.88, 0.96, 1.0)  # of the ranks that each stands for, as shares of the tokens
COLOURS = {"normalized": "#1f6feb", "accumulated": "#c2552d"}
NAMED = 60  # tokens: longer prompts get positions instead of texts on the axis


def visible(piece: str) -> str:
    """A token's text in one line."""
    return cli.harmless(piece.replace("\n", "⏎").replace("\t", "⇥")) or "∅"


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n]: the share of values that are not above each: 1 for the largest."""
    order: NDArray[np.float64] = np.searchsorted(np.sort(values), values, side="right") / len(values)
    return order


@dataclass(frozen=True)
class View:
    """Some metrics of one layer, or of their mean, side by side."""

    values: Mapping[str, NDArray[np.float64]]  # metric -> [n_tokens]
    found: Saliency
    layer: int | None

    @property
    def title(self) -> str:
        where = "mean over layers" if self.layer is None else f"layer {self.layer}"
        found = self.found
        return f"{len(found.tokens):,} tokens, {where}, {len(found.probes):,} probes"

    def show(self, console: Console, top: int) -> None:
        console.print(Text(self.title, style="bold"))
        if console.is_terminal:
            legend = Text("least ")
            for shade, upper in zip(SHADES, UPPER, strict=True):
                legend.append(f" {upper:.0%} ", style=_style(shade))
            console.print(legend.append(" most salient, by rank"))
        side_by_side = Table(expand=True, show_lines=False)
        for metric in self.values:
            side_by_side.add_column(metric, ratio=1)
        side_by_side.add_row(*(self._coloured(values) for values in self.values.values()))
        console.print(side_by_side)
        for metric, values in self.values.items():
            console.print(self._list(metric, values, top))

    def _coloured(self, values: NDArray[np.float64]) -> Text:
        text = Text()
        for piece, rank in zip(self.found.pieces, ranks(values), strict=True):
            shade = SHADES[int(np.searchsorted(UPPER, rank - 1e-9))]
            text.append(visible(piece), style=_style(shade))
            if "\n" in piece:
                text.append("\n" * piece.count("\n"))
        return text

    def _list(self, metric: str, values: NDArray[np.float64], top: int) -> Table:
        table = Table(title=f"most salient, {metric}", title_justify="left")
        for head in ("position", "token", metric, *(f"{other} rank" for other in self.values if other != metric)):
            table.add_column(head, justify="left" if head == "token" else "right")
        others = [_places(other) for name, other in self.values.items() if name != metric]
        for t in np.argsort(-values, kind="stable")[:top]:
            piece = Text(visible(self.found.pieces[t]))
            table.add_row(str(t), piece, f"{values[t]:.3g}", *(str(other[t]) for other in others))
        return table

    def draw(self, top: int) -> Figure:
        """One panel a metric: saliency over position, the most salient tokens named."""
        figure = plotting.new_figure(10, 1 + 2.6 * len(self.values))
        n = len(self.found.tokens)
        for row, (metric, values) in enumerate(self.values.items(), 1):
            axes = figure.add_subplot(len(self.values), 1, row)
            plotting.quiet(axes)
            axes.set_yscale("log")
            axes.vlines(np.arange(n), values[values > 0].min(initial=1), values, color=COLOURS[metric], linewidth=1)
            axes.plot(np.arange(n), values, ".", color=COLOURS[metric], markersize=4)
            axes.set_ylabel(f"{metric}\n(mean over heads)")
            axes.set_xlim(-0.01 * n - 0.5, 1.01 * n)
            axes.margins(y=0.25)
            if n <= NAMED:
                names = [plotting.plain(visible(piece)) for piece in self.found.pieces]
                axes.set_xticks(np.arange(n), names, rotation=90, fontsize=7)
            most = np.argsort(-values, kind="stable")[:top]
            points = [(float(t), float(values[t]), visible(self.found.pieces[t])) for t in most]
            plotting.label_points(figure, axes, points, plotting.ABOVE)
        figure.axes[0].set_title(plotting.plain(f"Saliency: {self.title}"), loc="left", fontsize=11)
        figure.axes[-1].set_xlabel("token" if n <= NAMED else "position, tokens")
        return figure


def _style(shade: str) -> str:
    return f"{'black' if SHADES.index(shade) < 4 else 'white'} on {shade}"


def _places(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """[n]: 1 for the largest, ..."""
    places = np.empty(len(values), np.int64)
    places[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    return places
