"""Where a number was made: versions, commit, machine. For the manifest and for doctor."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numba",
    "numpy",
    "datasets",
    "hydra-core",
    "gguf",
    "nltk",
    "textblob",
    "msrnn-bench",
)


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def outside() -> list[str]:
    """Installed packages whose version lies outside the range that msrnn-bench declares, which is the range it was tested in."""
    try:
        declared = requires("msrnn-bench") or []
    except PackageNotFoundError:
        return []
    found = []
    for wanted in map(Requirement, declared):
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            have = version(wanted.name)
        except PackageNotFoundError:
            found.append(f"{wanted.name} is missing (declared: {wanted.specifier})")
            continue
        if not wanted.specifier.contains(have, prereleases=True):
            found.append(f"{wanted.name} {have} lies outside {wanted.specifier}")
    return found


def git() -> dict[str, Any] | None:
    """Commit and cleanliness of the checkout this code runs from; None for an installed package."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    run = {"cwd": here, "capture_output": True, "text": True, "check": True}
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **run).stdout.strip()  # type: ignore[call-overload]
        dirty = subprocess.run(["git", "status", "--porcelain"], **run).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "clean": not dirty}


def machine() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": cuda,
    }


def hardware(device: str) -> dict[str, Any]:
    """What a time depends on: the processor, the threads and the device that `device` (auto, cpu, cuda, cuda:1) means here."""
    import torch

    kind, _, number = ("cuda" if torch.cuda.is_available() else "cpu", "", "") if device == "auto" else device.partition(":")
    name = torch.cuda.get_device_name(int(number or 0)) if kind == "cuda" and torch.cuda.is_available() else kind
    return {"processor": _processor(), "threads": torch.get_num_threads(), "device": name}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
