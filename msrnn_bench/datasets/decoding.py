"""Bytes to text: which encoding a file is in, and what of it could not be read, said rather than passed over.

A file that is UTF-8 but for a few bytes is UTF-8: reading the whole as a legacy code page turns every accent into two wrong
letters without a word (and a novel's perplexity from 55 into 140).
"""

import codecs
import logging
from dataclasses import dataclass
from pathlib import Path

from msrnn_bench.errors import UsageError, one_line

log = logging.getLogger(__name__)

# UTF-32 first: its little-endian mark begins with UTF-16's.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
# Letters beyond ASCII that UTF-8 must explain for each byte that it does not: by chance a legacy text has hardly any.
NEARLY_ALL = 4
NAMED_OFFSETS = 3  # of bytes that were replaced, told one by one


@dataclass(frozen=True)
class Decoded:
    """`found` is how the encoding was found, and what had to be replaced, dropped or guessed: for manifest and user."""

    text: str
    encoding: str
    found: str


def decode(data: bytes, encoding: str, file: Path) -> Decoded:
    """The text of a file's bytes; `encoding` auto finds out. What was not plainly decodable is logged as a warning."""
    decoded = _find(data, file) if encoding == "auto" else _named(data, encoding, file)
    if "\0" in decoded.text:
        raise UsageError(f"{file} is a binary file, not text; leave it out with a glob: dataset.path='DIR/*.txt'")
    return decoded


def _named(data: bytes, encoding: str, file: Path) -> Decoded:
    try:
        return Decoded(data.decode(encoding), encoding, "named")
    except LookupError as error:
        raise UsageError(f"dataset.encoding={encoding} is not an encoding Python knows; try auto") from error
    except UnicodeError as error:
        raise UsageError(f"{file} is not {encoding} text: {one_line(error)}; set dataset.encoding") from error


def _find(data: bytes, file: Path) -> Decoded:
    """A byte-order mark decides, then UTF-8 if it fits or nearly fits, then a guess among the older encodings."""
    for mark, name in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            if name == "utf-8-sig":
                return _utf8(data[len(mark) :], len(mark), file, name)
            return Decoded(_named(data, name, file).text, name, "byte-order mark")
    try:
        return Decoded(data.decode("utf-8"), "utf-8", "valid UTF-8 throughout")
    except UnicodeDecodeError:
        return _utf8(data, 0, file, "utf-8") if _nearly_utf8(data) else _guessed(data, file)


def _nearly_utf8(data: bytes) -> bool:
    text, _ = _replaced(data)
    faults = text.count("\ufffd") - data.count("\ufffd".encode())
    explained = len(text) - len(text.encode("ascii", "ignore")) - text.count("\ufffd")
    return explained > NEARLY_ALL * faults


def _replaced(data: bytes) -> tuple[str, int]:
    """The text with each byte that is no UTF-8 replaced by U+FFFD, and how many bytes of a cut character end it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(data), len(decoder.getstate()[0])


def _utf8(data: bytes, before: int, file: Path, name: str) -> Decoded:
    """UTF-8 with faults: replaced in the middle, dropped at the end. Offsets count from the file's beginning."""
    text, cut = _replaced(data)
    notes = []
    faults = text.count("\ufffd") - data.count("\ufffd".encode())
    if faults:
        shown = ", ".join(str(before + offset) for offset in _offsets(data))
        what = "bytes that are no UTF-8 were" if faults > 1 else "byte that is no UTF-8 was"
        notes.append(f"{faults} {what} replaced by U+FFFD, at offset {shown}{' ...' if faults > NAMED_OFFSETS else ''}")
    if cut:
        notes.append(f"its last {cut} byte{'s' * (cut > 1)}, the beginning of a character cut off there, dropped")
    how = "byte-order mark" if name == "utf-8-sig" else "nearly all UTF-8"
    if notes:
        log.warning("%s: read as UTF-8; %s", file, "; ".join(notes))
    return Decoded(text, name, "; ".join([how, *notes]))


def _offsets(data: bytes) -> list[int]:
    """Where the first few faults are."""
    found: list[int] = []
    at = 0
    while len(found) < NAMED_OFFSETS:
        try:
            data[at:].decode("utf-8")
            break
        except UnicodeDecodeError as error:
            if at + error.end == len(data) and "unexpected end" in error.reason:
                break
            found.append(at + error.start)
            at += error.end
    return found


def _guessed(data: bytes, file: Path) -> Decoded:
    """charset-normalizer's own first choice confuses the Latin code pages where accents are rare (a novel's cp1252 comes
    out as cp1250, e-grave as c-caron), so Windows-1252, which holds ISO-8859-1's letters, is taken wherever it finds
    that plausible. Hungarian and Turkish code pages look plausible too: those need `encoding` to be named."""
    if b"\0" not in data:
        from charset_normalizer import from_bytes

        telling = b"\n".join(line for line in data.split(b"\n") if not line.isascii())
        guess = from_bytes(telling, cp_isolation=["cp1252"]).best() or from_bytes(telling).best()
        if guess is not None:
            log.warning("%s: not UTF-8; guessed to be %s (dataset.encoding=NAME says otherwise)", file, guess.encoding)
            return Decoded(_named(data, guess.encoding, file).text, guess.encoding, "guessed")
    raise UsageError(f"{file} is a binary file or in an encoding that cannot be told: name it in dataset.encoding")
