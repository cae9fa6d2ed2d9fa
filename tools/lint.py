"""Runs all linters: `python tools/lint.py [--fix]`. They come with `pip install '.[lint]'`."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ["python", "tests", "bench", "tools", "examples", "models", "ggml"]


def sources() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "*.cpp", "*.h", "*.cu", "*.cuh", "*.c", "*.mm"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return listed.stdout.split()


def clang_tidy() -> bool:
    """Every translation unit as the developers' build compiles it. True if nothing was found."""
    build = ROOT / "build" / "lint"
    configure = ["cmake", "--preset", "dev", "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}"]
    done = subprocess.run(configure, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout, done.stderr)
        return False

    def check(source: str) -> str:
        # the notes on stderr are counts of suppressed warnings in other people's headers
        command = ["clang-tidy", "--quiet", "-p", str(build), source]
        result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        return result.stdout if result.returncode else ""

    known = (build / "compile_commands.json").read_text()
    units = [source for source in sources() if source.endswith(".cpp") and source in known]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [output for output in pool.map(check, units) if output]
    print("\n".join(found))
    return not found


def mypy() -> bool:
    """The package as it is installed, where models/convert is zipcache_rt.convert. True if nothing was found."""
    package = ROOT / "build" / "lint" / "python" / "zipcache_rt"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for source in [*(ROOT / "python" / "zipcache_rt").iterdir(), ROOT / "models" / "convert"]:
        (package / source.name).symlink_to(source)
    return subprocess.run([sys.executable, "-m", "mypy", str(package)], cwd=ROOT, check=False).returncode == 0


def main() -> int:
    fix = "--fix" in sys.argv[1:]
    folders = [folder for folder in PYTHON if any((ROOT / folder).rglob("*.py"))]
    commands = [
        ["clang-format", "-i" if fix else "--dry-run", *([] if fix else ["-Werror"]), *sources()],
        ["ruff", "format", *([] if fix else ["--check"]), *folders],
        ["ruff", "check", *(["--fix"] if fix else []), *folders],
    ]
    failed = 0
    for command in commands:
        print("+", " ".join(command[:3]), "...", flush=True)
        failed += subprocess.run(command, cwd=ROOT, check=False).returncode != 0
    print("+ mypy ...", flush=True)
    failed += not mypy()
    print("+ clang-tidy ...", flush=True)
    failed += not clang_tidy()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
