"""Figure 6: prefill and decode latency and peak memory over context length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import plotting
from .findings import Findings
from .plan import F16, Artefact
from .shown import Cells, Column, Shown, busy_note, failures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    Column("name", "cache"),
    Column("policy", "policy"),
    Column("context_tokens", "context, tokens", ",d"),
    Column("prefill_seconds", "prefill, s", ".2f"),
    Column("prefill_of_f16", "of f16", ".2f"),
    Column("decode_ms_per_token", "decode, ms/token", ".2f"),
    Column("decode_of_f16", "of f16", ".2f"),
    Column("peak_mb", "peak memory, MB", ",.0f"),
    Column("peak_minus_f16_mb", "less f16's, MB", "+,.0f"),
    Column("loaded_mb", "model loaded, MB", ",.0f"),
    Column("end_mb", "in the end, MB", ",.0f"),
    Column("kv_mb", "cache, MB", ",.1f"),
)
PANELS = (
    ("prefill_seconds", "prefill of the whole context, s"),
    ("decode_ms_per_token", "decode after it, ms a token"),
    ("peak_mb", "peak memory of the process, MB"),
)


def show(artefact: Artefact, found: Findings) -> Shown:
    size = found.subject.size
    rows: list[Cells] = []
    for row in artefact.rows:
        for context in size.contexts:
            speed, base = found.speed.get((row.policy, context)), found.speed.get((F16, context))
            if not speed:
                continue
            cells: Cells = {"name": row.name, "policy": row.policy, "context_tokens": context}
            cells |= {
                "prefill_seconds": speed.prefill_seconds,
                "decode_ms_per_token": 1e3 * speed.decode_seconds / size.n_decode,
                "peak_mb": speed.peak / 1e6,
                "loaded_mb": speed.loaded / 1e6,
                "end_mb": speed.end / 1e6,
                "kv_mb": speed.kv_bytes / 1e6,
            }
            if base:
                cells |= {
                    "prefill_of_f16": speed.prefill_seconds / base.prefill_seconds,
                    "decode_of_f16": speed.decode_seconds / base.decode_seconds,
                    "peak_minus_f16_mb": (speed.peak - base.peak) / 1e6,
                }
            rows.append(cells)
    runs = f"medians of {size.repeat} runs" if size.repeat > 1 else "one run each: take it as a sketch"
    notes = [
        *failures(artefact.rows, found),
        f"{size.n_decode} tokens decoded; {runs}; MB = 1e6 bytes of resident memory (on a GPU: the host's alone).",
        *busy_note(found),
    ]
    return Shown(artefact, COLUMNS, rows, _draw(artefact, rows) if rows else None, notes=notes)


def _draw(artefact: Artefact, rows: list[Cells]) -> Figure:
    figure = plotting.new_figure(13.5, 4.4)
    all_axes = figure.subplots(1, len(PANELS))
    for axes, (key, title) in zip(all_axes, PANELS, strict=True):
        plotting.quiet(axes)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("context, tokens")
        for row in artefact.rows:
            mine = [cells for cells in rows if cells["policy"] == row.policy]
            x, y = [cells["context_tokens"] for cells in mine], [cells[key] for cells in mine]
            width = 2.4 if row.policy == F16 else 1.4
            line = "--" if row.policy == F16 else "-"
            if mine:
                axes.plot(x, y, line, color=row.colour, marker=row.marker, linewidth=width, label=row.name)
        axes.set_xlim(0, None)
        if key != "peak_mb":
            axes.set_ylim(0, None)
    loaded = min(cells["loaded_mb"] for cells in rows)
    all_axes[-1].axhline(loaded, color="#a3a9b1", linewidth=1, linestyle=":")
    all_axes[-1].annotate(
        "model loaded", (0.99, loaded), xycoords=all_axes[-1].get_yaxis_transform(), ha="right", va="bottom", fontsize=8
    )
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure
