"""Bytes: a budget as people write it, what a machine has left, what a process or device took at most."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from msrnn_bench.errors import UsageError

UNITS = {"": 1, **{f"{p}B": 1000**n for n, p in enumerate(("", "K", "M", "G", "T"))}}
UNITS |= {f"{p}iB": 1024**n for n, p in enumerate(("", "K", "M", "G", "T")) if p}
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def parsed(text: str, key: str = "task.memory") -> int:
    """Bytes of "2GiB", "500 MB", "1.5GB" or "4096"; GB is 1000^3, GiB 1024^3."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = None if found is None else next((u for u in UNITS if u.lower() == found[2].lower()), None)
    size = 0 if found is None or unit is None else int(float(found[1]) * UNITS[unit])
    if size < 1:
        raise UsageError(f"{key}={text} is no amount of memory: write 2GiB, 500MB or a number of bytes")
    return size


def shown(size: float) -> str:
    """Bytes for people: 2 GiB, 1.3 MiB."""
    power = next((n for n in range(4) if size < 1024 ** (n + 1)), 4)
    return f"{size / 1024**power:.3g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def left(device: torch.device) -> int | None:
    """Bytes that the device, or for a CPU the machine, has free; None where that is not told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def forget_peak(device: torch.device) -> None:
    """From here on the peak is counted anew, where that can be had."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            _CLEAR.write_text("5", encoding="ascii")
        except OSError:
            return


def peak(device: torch.device) -> int | None:
    """The most bytes since `forget_peak`: allocated on a CUDA device, else resident of this process (interpreter and weights
    included); None where the system does not count anew."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if not _CLEAR.exists():
        return None
    found: list[Any] = re.findall(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="utf-8"), flags=re.M)
    return int(found[0]) * 1024 if found else None


def peak_bytes() -> int:
    """The process's largest resident set so far; on CUDA the largest allocation."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
