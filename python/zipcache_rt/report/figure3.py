"""Figure 3: which tokens are salient by accumulated and by normalized attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import plotting
from ..saliency_view import COLOURS, visible
from .findings import Findings
from .plan import Artefact
from .shown import Cells, Column, Shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = ("accumulated", "normalized")
COLUMNS = (
    Column("position", "position", "d"),
    Column("token", "token"),
    *(Column(f"{metric}_salient_share", f"{metric}: share of layers where salient", ".2f") for metric in METRICS),
    *(Column(f"{metric}_mean", f"{metric}: mean over layers", ".3g") for metric in METRICS),
)
LAST = 48  # tokens of the prompt's end that are shown by name
SMOOTH = 0.04  # of the prompt: width of the moving mean


def show(artefact: Artefact, found: Findings) -> Shown:
    saliency = found.saliency
    if saliency is None:
        return Shown(artefact, COLUMNS, [], None)
    rows: list[Cells] = [
        {
            "position": t,
            "token": visible(piece),
            **{f"{metric}_salient_share": saliency[metric]["salient"][t] for metric in METRICS},
            **{f"{metric}_mean": saliency[metric]["mean"][t] for metric in METRICS},
        }
        for t, piece in enumerate(saliency["pieces"])
    ]
    return Shown(artefact, COLUMNS, rows, _draw(saliency), notes=[_tenths(saliency)])


def _tenths(saliency: Mapping[str, Any]) -> str:
    """What each metric makes of the prompt's beginning and of its end."""
    told = []
    for metric in METRICS:
        share = np.asarray(saliency[metric]["salient"])
        tenth = max(1, len(share) // 10)
        told.append(f"{metric}: {share[:tenth].mean():.0%} in the first tenth, {share[-tenth:].mean():.0%} in the last")
    return "Mean probability of being salient, " + "; ".join(told) + "."


def _draw(saliency: Mapping[str, Any]) -> Figure:
    n = len(saliency["pieces"])
    figure = plotting.new_figure(12, 6.4)
    upper, lower = figure.subplots(2, 1, gridspec_kw={"height_ratios": [1.5, 1]})
    plotting.quiet(upper)
    upper.set_ylabel("probability of being salient, %\n(share of layers)")
    upper.set_xlabel("position in the prompt, tokens")
    upper.set_xlim(-0.5, n - 0.5)
    upper.set_ylim(-3, 103)
    for metric in METRICS:
        share = 100 * np.asarray(saliency[metric]["salient"])
        upper.plot(share, ".", color=COLOURS[metric], markersize=3, alpha=0.35)
        upper.plot(_moving_mean(share, max(3, round(SMOOTH * n))), color=COLOURS[metric], linewidth=2, label=metric)
    upper.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.12), ncols=2)
    first = max(0, n - LAST)
    shares = np.array([saliency[metric]["salient"][first:] for metric in METRICS])
    image = lower.imshow(100 * shares, aspect="auto", cmap="Blues", vmin=0, vmax=100)
    lower.set_yticks([0, 1], METRICS)
    names = [plotting.plain(visible(piece)) for piece in saliency["pieces"][first:]]
    lower.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    lower.set_xlabel(f"the prompt's last {len(names)} tokens: the question")
    figure.colorbar(image, ax=lower, label="salient, % of layers", pad=0.01)
    return figure


def _moving_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    kernel = np.ones(width)
    made: NDArray[np.float64] = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
    return made
