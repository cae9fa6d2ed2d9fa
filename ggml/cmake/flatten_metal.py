"""Writes Metal sources as one text, with everything they include by quotes in it, once.

python flatten_metal.py OUT -I FOLDER... --sources FILE... [--cpp [--library FILE.metallib]]

--cpp: as a C++ file that defines what native/metal/library.h declares; --library: with that compiled library beside it.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

INCLUDE = re.compile(r'\s*#include "(.+)"\s*')
ONCE = re.compile(r"\s*#pragma once\s*")


def flatten(path: Path, folders: list[Path], seen: set[Path]) -> list[str]:
    """The lines of a file, in the place of each include those of what it includes."""
    if path.resolve() in seen:
        return []
    seen.add(path.resolve())
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if included := INCLUDE.fullmatch(line):
            found = [folder / included[1] for folder in folders if (folder / included[1]).is_file()]
            if not found:
                raise SystemExit(f"{path} includes {included[1]}, which is in none of {', '.join(map(str, folders))}")
            lines += flatten(found[0], folders, seen)
        elif not ONCE.fullmatch(line):
            lines.append(line)
    return lines


def as_cpp(lines: list[str], library: bytes) -> str:
    pieces = ["\n".join(lines[i : i + 100]) + "\n" for i in range(0, len(lines), 100)]  # compilers limit a literal
    source = "\n".join(f'R"metal({piece})metal"' for piece in pieces)
    data = ", ".join(map(str, library or b"\0"))
    return f"""#include "metal/library.h"

namespace zipcache::metal {{

const char * const kLibrarySource =
{source};
const unsigned char kLibrary[] = {{{data}}};
const size_t kLibraryBytes = {len(library)};

}}  // namespace zipcache::metal
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("-I", dest="folders", action="append", type=Path, default=[])
    parser.add_argument("--sources", nargs="+", type=Path, required=True)
    parser.add_argument("--cpp", action="store_true")
    parser.add_argument("--library", type=Path)
    args = parser.parse_args()
    seen: set[Path] = set()
    lines = [line for source in sorted(args.sources) for line in flatten(source, args.folders, seen)]
    library = args.library.read_bytes() if args.library else b""
    args.out.write_text(as_cpp(lines, library) if args.cpp else "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
