"""The one text that a build for Apple's GPUs is given of the Metal kernels: ggml/cmake/flatten_metal.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "ggml/src"
SOURCES = sorted(KERNELS.rglob("*.metal"))


def flatten(out: Path, *args: str | Path, sources: list[Path] = SOURCES) -> str:
    command = [sys.executable, ROOT / "ggml/cmake/flatten_metal.py", out, "-I", KERNELS, *args, "--sources", *sources]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return out.read_text(encoding="utf-8")


def test_every_kernel_is_in_it_once_and_no_file_is_missing(tmp_path: Path) -> None:
    text = flatten(tmp_path / "library.metal")
    assert '#include "' not in text and "#pragma once" not in text
    names = re.findall(r'^    "(\w+)",$', (KERNELS / "metal/kernels.cpp").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(re.findall(r'^INSTANTIATE_KERNEL\("(\w+)"', text, re.MULTILINE)) == sorted(names)
    assert text.count("struct Format {") == 1


def test_the_cpp_file_holds_the_same_text_and_the_compiled_library(tmp_path: Path) -> None:
    compiled = tmp_path / "some.metallib"
    compiled.write_bytes(bytes(range(256)))
    cpp = flatten(tmp_path / "library.cpp", "--cpp", "--library", compiled)
    text = flatten(tmp_path / "library.metal")
    assert "".join(re.findall(r'R"metal\((.*?)\)metal"', cpp, re.DOTALL)) == text
    assert "kLibrary[] = {0, 1, 2, " in cpp and "kLibraryBytes = 256;" in cpp
    assert "kLibraryBytes = 0;" in flatten(tmp_path / "library.cpp", "--cpp")


def test_an_include_that_is_nowhere_is_named(tmp_path: Path) -> None:
    source = tmp_path / "some.metal"
    source.write_text('#include "metal/nowhere.h"\n', encoding="utf-8")
    with pytest.raises(subprocess.CalledProcessError) as error:
        flatten(tmp_path / "out.metal", sources=[source])
    assert "some.metal includes metal/nowhere.h, which is in none of" in error.value.stderr
