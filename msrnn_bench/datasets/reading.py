"""From bytes to documents: which files a path means, how they are decoded, what is cut.

Knows nothing of datasets' settings, tokenizers or models. Line ends are LF in everything that leaves this module.
"""

import glob
import gzip
import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from msrnn_bench.datasets.decoding import Decoded, decode
from msrnn_bench.errors import MachineError, UsageError, one_line

# The title may wrap over lines before the closing asterisks; before 2003 the header ended with the "small print".
GUTENBERG_START = re.compile(
    r"^[ \t]*(?:\*{3} ?START OF (?:TH(?:E|IS) )?PROJECT GUTENBERG(?:[^*]{0,300}\*{3})?"
    r"|\*END ?\*? ?THE SMALL PRINT!).*$",
    re.MULTILINE | re.IGNORECASE,
)
GUTENBERG_END = re.compile(
    r"^[ \t]*(?:\*{3} ?END OF (?:TH(?:E|IS) )?PROJECT GUTENBERG|End of (?:th(?:e|is) )?Project Gutenberg).*$",
    re.MULTILINE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Document:
    """One text under its name; where there were bytes, `encoding` is what they were decoded with, `found` how that was
    found (see decoding.py)."""

    name: str
    text: str
    encoding: str | None = None
    found: str | None = None

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def normalise(text: str) -> str:
    """LF line ends; half a surrogate pair (JSON allows it, no tokenizer does) becomes a question mark."""
    return text.replace("\r\n", "\n").replace("\r", "\n").encode(errors="replace").decode()


def find_files(path: str) -> list[tuple[str, Path]]:
    """(document name, file) for a file, a folder (all files below it that are not hidden) or a glob, sorted by path.

    A name is the path below the folder without its suffix, so it says nothing of where the folder lies; files that
    differ by suffix alone keep it.
    """
    if not path:
        raise UsageError("dataset=text needs a path: dataset.path=FILE, FOLDER or 'GLOB'")
    given = Path(path).expanduser()
    if given.is_file():
        return [(_stem(given.name), given)]
    if given.is_dir():
        root, found = given, [file for file in given.rglob("*") if file.is_file()]
        found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(root).parts)]
    else:
        found = [Path(file) for file in glob.glob(str(given), recursive=True) if os.path.isfile(file)]
        root = Path(os.path.commonpath([file.parent for file in found])) if found else given
    if not found:
        what = "holds no files" if given.is_dir() else "matches no file" if glob.has_magic(path) else "does not exist"
        raise UsageError(f"{path} {what}; give dataset.path a text file, a folder of them or a glob")
    names = {file: file.relative_to(root).as_posix() for file in sorted(found)}
    stems = Counter(_stem(name) for name in names.values())
    return [(_stem(name) if stems[_stem(name)] == 1 else name, file) for file, name in names.items()]


def path_name(path: str) -> str:
    """What to call the text at a path: the last part of it that is no pattern, a file's without its suffix."""
    given = Path(os.path.abspath(Path(path).expanduser()))
    plain = [part for part in given.parts if not glob.has_magic(part)]
    return _stem(given.name) if given.is_file() else plain[-1]


def _stem(name: str) -> str:
    return Path(name.removesuffix(".gz")).with_suffix("").as_posix()


def stamp(files: list[Path]) -> tuple:
    """What changes when one of the files does, without reading them."""
    stats = [(file, file.stat()) for file in files]
    return tuple((str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file, stat in stats)


def read_file(file: Path, encoding: str) -> Decoded:
    """A file's text, line ends normalised; decompressed where it ends in .gz."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise MachineError(f"cannot read {file}: {error.strerror}") from error
    if file.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{file} is not a whole gzip file: {one_line(error)}") from error
    decoded = decode(data, encoding, file)
    return replace(decoded, text=normalise(decoded.text))


def json_texts(text: str, field: str, file: Path) -> Iterator[str]:
    """The field of every line of a JSON-lines file."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{file}, line {number} is not JSON: {one_line(error)}") from error
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            fields = [key for key, value in row.items() if isinstance(value, str)] if isinstance(row, dict) else []
            raise UsageError(
                f"{file}, line {number} has no text field {field!r}: "
                f"set dataset.field to one of its own ({', '.join(fields) or 'it has none'})"
            )
        yield normalise(row[field])


def strip_gutenberg(text: str) -> str:
    """The book without Project Gutenberg's header and footer; a text without their marks stays as it is."""
    first = GUTENBERG_START.search(text)
    end = GUTENBERG_END.search(text, first.end() if first else 0)
    if not first and not end:
        return text
    stop = end.start() if end else len(text)
    begins = [mark.end() for mark in GUTENBERG_START.finditer(text, 0, stop)]
    return text[max(begins, default=0) : stop].strip()
