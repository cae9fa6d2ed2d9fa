"""One HTML page that needs nothing else: pictures are in it."""

from __future__ import annotations

import base64
import importlib.resources
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from .. import cli
from ..fidelity_report import versions
from .findings import Findings
from .plan import F16, Artefact, policies
from .shown import Shown
from .subject import Subject

LONGEST = 60  # rows of a table on the page; the CSV file has all


@dataclass(frozen=True)
class Part:
    """An artefact on the page."""

    shown: Shown
    picture: str  # PNG in base64, or "": nothing measured yet
    heads: list[str]
    rows: list[list[str]]
    left_out: int  # rows that only the CSV file has
    commands: list[str]
    files: str  # where the CSV, PNG and SVG lie, below the page's folder


@dataclass(frozen=True)
class Section:
    """A model on the page."""

    name: str
    facts: list[tuple[str, str]]
    parts: list[Part]


def section(found: Findings, shown: Sequence[Shown], folder: Path, out: Path, command: str) -> Section:
    parts = [_part(one, found.subject, folder, out, command) for one in shown]
    return Section(found.subject.name, _facts(found.subject), parts)


def render(sections: Sequence[Section]) -> str:
    template = importlib.resources.files(__package__).joinpath("page.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return environment.from_string(template).render(sections=sections, machine=machine(), made=made)


def machine() -> list[tuple[str, str]]:
    found = versions()
    ggml = found.pop("ggml")
    features = ", ".join(name for name, on in ggml["features"].items() if on)
    words = ", ".join(f"{name} {number}" for name, number in found.items())
    return [
        ("machine", cli.machine()),
        ("versions", f"{words}, matplotlib {version('matplotlib')}"),
        ("ggml", f"{ggml['version']} ({ggml['source']}), {features}; kernels {ggml['kernels']}"),
    ]


def _part(shown: Shown, subject: Subject, folder: Path, out: Path, command: str) -> Part:
    picture = ""
    if shown.figure:
        picture = base64.b64encode((folder / f"{shown.artefact.name}.png").read_bytes()).decode()
    rows = [[column.shown(cells) for column in shown.columns] for cells in shown.rows[:LONGEST]]
    commands = [f"{command} --only {shown.artefact.name}"] if command else []
    return Part(
        shown=shown,
        picture=picture,
        heads=[column.head for column in shown.columns],
        rows=rows,
        left_out=len(shown.rows) - len(rows),
        commands=commands + _commands(shown.artefact, subject, out),
        files=f"{folder.name}/{shown.artefact.name}",
    )


def _facts(subject: Subject) -> list[tuple[str, str]]:
    info, size = subject.info, subject.size
    shape = f"{info.n_layers} layers, {info.n_heads} heads, {info.n_kv_heads} KV heads, head size {info.head_dim}"
    kept = f"{info.n_params / 1e6:,.0f}M parameters, {info.quantization}, {info.file_bytes / 1e6:,.1f} MB"
    names = ", ".join(text.name for text in subject.texts)
    return [
        ("model", f"{info.name or subject.name}: {info.architecture}, {shape}; {kept}"),
        ("SHA-256", subject.sha256),
        ("runs on", f"{info.runs_on}, {info.threads} threads"),
        ("fidelity", f"{size.context:,} tokens prefilled, {size.n_continue} decoded and scored; {names}"),
        ("line retrieval", f"{', '.join(map(str, subject.task.lines))} lines, {size.n_cases} prompts of each"),
        ("size", size.name),
    ]


def _commands(artefact: Artefact, subject: Subject, out: Path) -> list[str]:
    """The tools that make the same figures one by one."""
    made, size, folder = [], subject.size, out / "texts"
    info = subject.info
    here = ["--device", info.device, "--threads", str(info.threads)]
    here += ["--gpu-layers", str(info.gpu_layers)] if info.is_split else []

    def add(tool: str, *words: Any) -> None:
        made.append(shlex.join(["python", "-m", *f"zipcache_rt.{tool}".split(), str(subject.path), *map(str, words)]))

    wanted = [policy for policy in policies([artefact], artefact.measures[0]) if policy != F16]
    if "fidelity" in artefact.measures:
        data = [folder / text.name for text in subject.texts]
        lengths = ("--context", size.context, "--continue", size.n_continue)
        add("fidelity", "--policies", *wanted, "--data", *data, *lengths, *here)
    if "saliency" in artefact.measures:
        add("saliency", "--prompt", folder / subject.prompt_name, *here)
    if "lines" in artefact.measures and subject.task.lines:
        numbers = ",".join(map(str, subject.task.lines))
        add("eval lines", "--lines", numbers, "--cases", size.n_cases, "--no-template", "--policies", *wanted, *here)
    return made
