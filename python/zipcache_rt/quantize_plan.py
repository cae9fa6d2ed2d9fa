"""Which type each tensor of a model gets: the mixes that llama.cpp's users know by the names q4_k_m, q8_0, ..."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._core import ArgumentError, ModelError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written. Shapes are NumPy's: [n_rows, n_columns], experts in front."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType | None = None  # what it is where it is not quantized; None: f32


@dataclass(frozen=True)
class Facts:
    """What the mixes ask of a model."""

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int = 0

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Facts:
        """From GGUF metadata. Raises ModelError for a key that is missing."""
        architecture = metadata.get("general.architecture")

        def number(name: str, fallback: int | None = None) -> int:
            value = metadata.get(f"{architecture}.{name}", fallback)
            value = value[0] if isinstance(value, (list, tuple)) else value  # one for each layer
            if not isinstance(value, int):
                raise ModelError(f"{architecture}.{name} is {value!r}; accepted: an integer")
            return value

        n_heads = number("attention.head_count")
        n_kv_heads = number("attention.head_count_kv", n_heads)
        return cls(str(architecture), number("block_count"), n_heads, n_kv_heads, number("expert_count", 0))

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.n_heads // max(1, self.n_kv_heads)

    @property
    def is_70b(self) -> bool:
        return self.n_layers == 80 and (
            self.architecture == "qwen2" or (self.architecture == "llama" and self.n_heads != self.n_kv_heads)
        )


@dataclass(frozen=True)
class Place:
    """A tensor's place among the n of its role."""

    i: int
    n: int
    facts: Facts

    @property
    def sensitive(self) -> bool:
        """The first and the last eighth of the layers, and every third between."""
        eighth = self.n // 8
        return self.i < eighth or self.i >= 7 * self.n // 8 or (self.i - eighth) % 3 == 2


Choice = Callable[[Place], str]


@dataclass(frozen=True)
class Mix:
    """Types by their names in lower case."""

    base: str
    file_type: str  # in gguf's LlamaFileType
    values: Choice | None = None  # attn_v, and attn_qkv that holds it
    down: Choice | None = None  # ffn_down
    output: str = ""  # attn_output, if not base
    output_of_8_experts: str = ""

    @property
    def is_float(self) -> bool:
        return self.base in ("f32", "f16", "bf16")


def _plain(name: str) -> Mix:
    return Mix(name, f"MOSTLY_{name.upper()}")


def _more(base: str, better: str) -> Choice:
    return lambda at: better if at.sensitive else base


MIXES = {
    "f32": Mix("f32", "ALL_F32"),
    **{name: _plain(name) for name in ("f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")},
    "q2_k": Mix(
        "q2_k", "MOSTLY_Q2_K", lambda at: "q4_k" if at.facts.group >= 4 else "q3_k", lambda at: "q3_k", "q3_k", "q5_k"
    ),
    "q3_k_s": Mix("q3_k", "MOSTLY_Q3_K_S", output_of_8_experts="q5_k"),
    "q3_k_m": Mix(
        "q3_k",
        "MOSTLY_Q3_K_M",
        lambda at: "q5_k" if at.i < 2 else "q4_k",
        lambda at: "q5_k" if at.i < at.n // 16 else "q4_k",
        "q4_k",
        "q5_k",
    ),
    "q3_k_l": Mix("q3_k", "MOSTLY_Q3_K_L", lambda at: "q5_k", lambda at: "q5_k", "q5_k"),
    "q4_k_s": Mix(
        "q4_k",
        "MOSTLY_Q4_K_S",
        lambda at: "q5_k" if at.i < 4 else "q4_k",
        lambda at: "q5_k" if at.i < at.n // 8 else "q4_k",
        output_of_8_experts="q5_k",
    ),
    "q4_k_m": Mix("q4_k", "MOSTLY_Q4_K_M", _more("q4_k", "q6_k"), _more("q4_k", "q6_k"), output_of_8_experts="q5_k"),
    "q5_k_s": Mix("q5_k", "MOSTLY_Q5_K_S"),
    "q5_k_m": Mix("q5_k", "MOSTLY_Q5_K_M", _more("q5_k", "q6_k"), _more("q5_k", "q6_k")),
    "q6_k": _plain("q6_k"),
}
ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
# for rows that are no whole number of blocks of 256
BLOCKS_OF_32 = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}


def find_mix(type_name: str) -> Mix:
    """Raises ArgumentError that lists the known ones."""
    name = type_name.lower()
    mix = MIXES.get(ALIASES.get(name, name))
    if mix is None:
        raise ArgumentError(f"the type is {type_name!r}; accepted: {', '.join([*MIXES, *ALIASES])}")
    return mix


def file_type(type_name: str) -> int:
    """The number of a mix in general.file_type."""
    from gguf import LlamaFileType

    return int(LlamaFileType[find_mix(type_name).file_type])


def plan(tensors: Iterable[Tensor], type_name: str, facts: Facts) -> dict[str, GGMLQuantizationType]:
    """The type of each tensor, in the order that llama.cpp writes them: by layer, then by name.

    Raises ArgumentError for an unknown type.
    """
    from gguf import GGMLQuantizationType

    mix = find_mix(type_name)
    ordered = sorted(tensors, key=lambda tensor: (_layer(tensor.name), tensor.name.encode()))
    choose = _Chooser(mix, facts, [tensor.name for tensor in ordered])
    planned = {}
    for tensor in ordered:
        if quantizable(tensor):
            chosen = mix.base if mix.is_float else _fitting(choose(tensor), tensor.shape[-1])
            planned[tensor.name] = GGMLQuantizationType[chosen.upper()]
        else:
            planned[tensor.name] = GGMLQuantizationType.F32 if tensor.kind is None else tensor.kind
    return planned


def quantizable(tensor: Tensor) -> bool:
    """Matrices of weights, but not the small one that routes tokens to experts."""
    name = tensor.name
    return (
        name.endswith("weight")
        and not name.endswith("_norm.weight")
        and "ffn_gate_inp.weight" not in name
        and any(n > 1 for n in tensor.shape[:-1])
    )


class _Chooser:
    """Goes through the tensors in order: some choices count what came before."""

    def __init__(self, mix: Mix, facts: Facts, names: list[str]) -> None:
        self.mix, self.facts = mix, facts
        self.tied = "output.weight" not in names
        self.n_values = sum(map(_holds_values, names))
        self.i_values = self.i_down = 0

    def __call__(self, tensor: Tensor) -> str:
        name, base = tensor.name, self.mix.base
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            return self._logits(tensor.shape[-1])
        if _holds_values(name):
            return self._values()
        if "attn_k.weight" in name and self.facts.n_experts == 8:
            return "q8_0"
        if "ffn_down" in name:
            return self._down(name)
        if "attn_output.weight" in name:
            better = self.mix.output_of_8_experts if self.facts.n_experts == 8 else self.mix.output
            return better or base
        return base

    def _logits(self, n_columns: int) -> str:
        return "q8_0" if self.mix.base == "q8_0" or n_columns % _block(self.mix.base) else "q6_k"

    def _values(self) -> str:
        place = Place(self.i_values, self.n_values, self.facts)
        self.i_values += 1
        if self.facts.n_experts == 8:  # small beside the experts
            return "q8_0"
        chosen = self.mix.values(place) if self.mix.values else self.mix.base
        return "q5_k" if self.facts.is_70b and chosen in ("q3_k", "q4_k") else chosen

    def _down(self, name: str) -> str:
        i = _layer(name) if self.facts.n_experts > 1 else self.i_down
        self.i_down += 1
        return self.mix.down(Place(i, self.facts.n_layers, self.facts)) if self.mix.down else self.mix.base


def _holds_values(name: str) -> bool:
    return "attn_v.weight" in name or "attn_qkv.weight" in name


def _layer(name: str) -> int:
    """-1 for tensors of no layer."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _block(name: str) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return int(GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]][0])


def _fitting(name: str, n_columns: int) -> str:
    """The type, or the next that has blocks for such rows."""
    if n_columns % _block(name):
        name = BLOCKS_OF_32.get(name, name)
    return "f16" if n_columns % _block(name) else name
