"""msrnn-bench: transformers as bounded multi-state RNNs (arXiv 2401.06104), measured.

    import msrnn_bench as mb
    with mb.bounded(model, mb.Tova(), state_size=512) as states:
        logits = model(input_ids).logits

What needs torch is imported at first use, so that the command line answers at once.
"""

from typing import TYPE_CHECKING, Any

from msrnn_bench import moved
from msrnn_bench.errors import MachineError, UsageError
from msrnn_bench.policies import A2SF, H2O, Baseline, ElementwisePolicy, Eviction, Full, Policy, Random, Tova, Window

if TYPE_CHECKING:
    from msrnn_bench.multistate.attention import bounded
    from msrnn_bench.multistate.recurrence import recurrence
    from msrnn_bench.multistate.scan import scan

__version__ = "0.1.0"

# Part of every cell id: raised whenever a change of the code may change a result.
NUMERICS = 1
__all__ = [
    "A2SF", "H2O", "Baseline", "ElementwisePolicy", "Eviction", "Full", "MachineError", "Policy", "Random", "Tova", "UsageError",
    "Window", "bounded", "recurrence", "scan",
]  # fmt: skip

_LATER = {"bounded": "attention", "recurrence": "recurrence", "scan": "scan"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(f"msrnn_bench.multistate.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


moved.put_up()
