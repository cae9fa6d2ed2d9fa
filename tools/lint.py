"""Runs all linters: `python tools/lint.py [--fix]`. They come with `pip install '.[lint]'`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ["python", "tests", "bench", "tools", "examples", "models"]


def sources() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "*.cpp", "*.h", "*.cu", "*.cuh", "*.c"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return listed.stdout.split()


def main() -> int:
    fix = "--fix" in sys.argv[1:]
    folders = [folder for folder in PYTHON if any((ROOT / folder).rglob("*.py"))]
    commands = [
        ["clang-format", "-i" if fix else "--dry-run", *([] if fix else ["-Werror"]), *sources()],
        ["ruff", "format", *([] if fix else ["--check"]), *folders],
        ["ruff", "check", *(["--fix"] if fix else []), *folders],
        [sys.executable, "-m", "mypy", "python/zipcache_rt"],
    ]
    failed = 0
    for command in commands:
        print("+", " ".join(command[:3]), "...", flush=True)
        failed += subprocess.run(command, cwd=ROOT, check=False).returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
