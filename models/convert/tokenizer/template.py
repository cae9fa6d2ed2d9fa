"""Chat templates: in tokenizer_config.json (one or several by name), or in files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..._core import FileError, ModelError
from ..checkpoint import member
from ..config import Config, shown
from .vocabulary import encodable

KEY = "tokenizer.chat_template"
LONGEST = 4 << 20  # bytes
LONGEST_NAME = 100  # characters


def read_templates(folder: Path, config: Config) -> dict[str, Any]:
    """GGUF keys: the default template, and others as KEY.NAME with their names in a list."""
    named = _of_files(folder) or _of_config(config)
    for name, text in named.items():
        if not encodable(text) or not name.isprintable() or len(name) > LONGEST_NAME:
            raise ModelError(f"the chat template {shown(name)} has a name or text that is no valid Unicode")
    values: dict[str, Any] = {KEY: named.pop("default")} if "default" in named else {}
    if named:
        values[KEY + "s"] = sorted(named)
    return values | {f"{KEY}.{name}": text for name, text in named.items()}


def _of_config(config: Config) -> dict[str, str]:
    value = config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    return {entry.text("name"): entry.text("template") for entry in config.objects("chat_template")}


def _of_files(folder: Path) -> dict[str, str]:
    if not (folder / "chat_template.jinja").exists():
        return {}
    found = {"default": _text(member(folder, "chat_template.jinja"))}
    more = folder / "additional_chat_templates"
    for path in sorted(more.glob("*.jinja")) if more.is_dir() else []:
        found[path.stem] = _text(member(more, path.name))
    return found


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LONGEST:
            raise FileError(f"{path} has {path.stat().st_size:,} bytes; accepted: up to {LONGEST:,}")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read {path}: {error}") from error
