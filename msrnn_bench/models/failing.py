"""What other libraries raise while a model is read, as the one line that a user meets."""

import contextlib
from collections.abc import Iterator

from msrnn_bench.errors import MachineError, UsageError, one_line, out_of_memory


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Other libraries' errors while a model is read, as one line: what the machine lacks, or what the files are."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    known = (OSError, ValueError, LookupError, AttributeError, TypeError, RuntimeError, SafetensorError, StrictDataclassError)
    try:
        yield
    except ImportError as error:
        raise MachineError(f"{name} needs a package that is missing: {one_line(error)}") from error
    except torch.AcceleratorError as error:
        raise MachineError(f"{name}: the device failed ({one_line(error)}): use device=cpu") from error
    except Exception as error:
        if out_of_memory(error):
            raise MachineError(
                f"{name} does not fit into memory ({one_line(error)}): "
                "take dtype=bfloat16, a smaller model, or model.device_map=auto"
            ) from error
        if isinstance(error, known) or type(error) is Exception:  # tokenizers raises the bare class
            remedy = "correct model.device_map" if "device_map" in str(error) else "check its files"
            raise UsageError(f"model {name} cannot be loaded ({one_line(error)}): {remedy}") from error
        raise
