"""The two errors a user may meet. Each message is one line that says what is wrong and how to fix it."""

import re


class UsageError(Exception):
    """What the user gave cannot be used: an override, a file, a value. Exit code 2."""

    exit_code = 2


class MachineError(UsageError):
    """What the machine lacks: a package, a network, room, a permission. Exit code 1."""

    exit_code = 1


def one_line(error: BaseException) -> str:
    """The message of another library's error, fit for a readable line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def out_of_memory(error: BaseException) -> bool:
    """torch says it in three ways: MemoryError, OutOfMemoryError on a device, a RuntimeError of the CPU allocator."""
    said = isinstance(error, RuntimeError) and re.search("out of memory|(allocate|enough) memory", str(error))
    return isinstance(error, MemoryError) or bool(said)
