"""What stands in for a CUDA graph where there is none: operations and launches are noted while they run, and done again on the
same memory. As a graph does, a replay has the numbers of the recording and only its tensors may differ; what a capture refuses
(a value read on the host, a tensor made of numbers on the host) is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from msrnn_bench.multistate import gpu

REFUSED = ("aten._local_scalar_dense", "aten.nonzero", "aten.lift_fresh", "aten.is_nonzero", "aten.equal")


class _Notes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(REFUSED):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.steps.append(lambda: _into(result, func(*args, **kwargs)))
        return result


def _into(old: Any, new: Any) -> None:
    """What was computed goes where it was the first time; views and tensors changed in place are there."""
    for a, b in zip(tree_leaves(old), tree_leaves(new), strict=True):
        if isinstance(a, torch.Tensor) and a.data_ptr() != b.data_ptr():
            a.copy_(b)


class _Kernel:
    def __init__(self, kernel: Any, notes: _Notes) -> None:
        self.kernel, self.notes = kernel, notes

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            def work() -> None:
                with _disable_current_modes():
                    self.kernel[grid](*args, **options)

            work()
            self.notes.steps.append(work)

        return launch


class _Kernels:
    def __init__(self, kernels: Any, notes: _Notes) -> None:
        self._kernels, self._notes = kernels, notes

    def __getattr__(self, name: str) -> _Kernel:
        return _Kernel(getattr(self._kernels, name), self._notes)


def record(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """In the place of `graph.record`. A capture computes nothing, this does; the states are put back before the first replay."""
    notes, kernels = _Notes(), gpu._kernels()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "_kernels", lambda: _Kernels(kernels, notes))
        with notes:
            result = work()

    def again() -> None:
        for step in notes.steps:
            step()

    return again, result
