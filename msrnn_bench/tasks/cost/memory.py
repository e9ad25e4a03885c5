"""Bytes: a budget as people write it, what a machine has left, what a process or device took at most."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from msrnn_bench.errors import UsageError

if TYPE_CHECKING:
    import torch

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


def left(device: torch.device) -> int:
    """Bytes that the device, or for a CPU the machine, has free; on a device what torch keeps at hand is free too."""
    if device.type == "cuda":
        import torch

        at_hand = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + at_hand
    return int(psutil.virtual_memory().available)


def forget_peak(device: torch.device) -> None:
    """From here on the peak is counted anew, where that can be had."""
    if device.type == "cuda":
        import torch

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
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return _resident() if _CLEAR.exists() else None


def peak_bytes() -> int | None:
    """The process's largest resident set so far, None where the system does not tell; on CUDA the largest allocation."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return _resident()


def _resident() -> int | None:
    """The largest resident set; each system has its own place for it."""
    if _STATUS.exists():  # Linux
        found: list[Any] = re.findall(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="utf-8"), flags=re.M)
        return int(found[0]) * 1024 if found else None
    told = psutil.Process().memory_info()
    if hasattr(told, "peak_wset"):  # Windows
        return int(told.peak_wset)
    import resource  # macOS, which counts in bytes, and the BSDs, which do not

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
