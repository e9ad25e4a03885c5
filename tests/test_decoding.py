"""A file's bytes: UTF-8 but for a cut end or stray bytes is UTF-8, and what was replaced, dropped or guessed is said."""

import codecs
import json
import logging

import pytest

from msrnn_bench.datasets.decoding import decode
from msrnn_bench.datasets.questions import Squality
from msrnn_bench.datasets.texts import Text
from msrnn_bench.errors import UsageError

BOOK = "“It was the best of times”, said Zoë; “it was the worst of times — and so on.”\n" * 40
BYTES = BOOK.encode()


@pytest.fixture
def read(tmp_path, caplog):
    """What a file of these bytes is read as, and what was said."""

    def read(data: bytes, **settings):
        file = tmp_path / "book.txt"
        file.write_bytes(data)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            dataset = Text(path=str(file), **settings)
            (document,) = dataset.documents()
        (listed,) = dataset.manifest()["listed"]
        assert listed["encoding"] == document.encoding and listed["found"] == document.found
        return document, [record.getMessage() for record in caplog.records]

    return read


def test_whole(read):
    document, said = read(BYTES)
    assert document.text == BOOK and document.found == "valid UTF-8 throughout" and said == []


@pytest.mark.parametrize("left", [1, 2])
def test_a_cut_end_is_dropped(read, left):
    """The last character has three bytes; some of them are there."""
    whole = BYTES + "abc—".encode()
    document, said = read(whole[: len(whole) - 3 + left])
    assert document.text == BOOK + "abc" and document.encoding == "utf-8"
    (line,) = said
    assert "\n" not in line and f"its last {left} byte" in line and "dropped" in line and "book.txt" in line
    assert "dropped" in document.found


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_stray_bytes_are_replaced_and_named(read, mark):
    data = mark + BYTES[:100] + b"\x92" + BYTES[100:]
    document, said = read(data)
    assert document.text.replace("\ufffd", "") == BOOK and document.text.count("\ufffd") == 1
    (line,) = said
    assert f"at offset {100 + len(mark)}" in line and "1 byte that is no UTF-8 was replaced" in line
    assert document.found.startswith("byte-order mark" if mark else "nearly all UTF-8")


def test_many_strays_are_counted(read):
    data = b"\x92".join(BYTES[i : i + 300].decode(errors="ignore").encode() for i in range(0, 3000, 300))
    document, (line,) = read(data)
    assert "9 bytes that are no UTF-8 were replaced" in line and line.endswith("...")
    assert document.text.count("\ufffd") == 9


def test_a_replacement_character_of_the_text_is_no_fault(read):
    document, said = read(BYTES + "\ufffd".encode())
    assert document.text.endswith("\ufffd") and said == []


@pytest.mark.parametrize("text", ["Après la pluie, il faisait très beau à l'été.\n" * 30, "only one apostrophe’s here\n" * 30])
def test_a_legacy_page_is_guessed_and_said(read, text):
    document, said = read(text.encode("cp1252"))
    assert document.text == text and document.encoding == "cp1252" and document.found == "guessed"
    assert len(said) == 1 and "guessed to be cp1252" in said[0]


def test_latin_letters_at_the_end_are_no_cut_character(read):
    """0xE9 begins a UTF-8 character and is an e-acute in Latin 1: nothing else in the text speaks for UTF-8."""
    document, said = read(("a plain text " * 50 + "café").encode("latin-1"))
    assert document.text.endswith("café") and "guessed" in said[0]


def test_a_named_encoding_is_strict(read):
    assert read(BYTES, encoding="utf-8")[0].found == "named"
    with pytest.raises(UsageError, match="is not utf-8 text"):
        read(BYTES[:100] + b"\x92" + BYTES[100:], encoding="utf-8")


def test_marks_of_other_widths(read):
    for name in ("utf-16", "utf-32"):
        document, said = read(BOOK.encode(name))
        assert document.text == BOOK and document.found == "byte-order mark" and said == []


def test_binary_is_refused(tmp_path):
    with pytest.raises(UsageError, match="binary"):
        decode(b"\x00\x01\xff" * 100, "auto", tmp_path / "x.bin")


def test_questions_say_it_too(tmp_path):
    record = {
        "document": "“A story — of Zoë.”" * 9, "metadata": {"passage_id": "1"},
        "questions": [{"question_text": "Who?", "responses": [{"response_text": "Zoë"}]}],
    }  # fmt: skip
    file = tmp_path / "dev.jsonl"
    file.write_bytes((json.dumps(record, ensure_ascii=False) + "\n").encode().replace(b"A story", b"A\x92story"))
    source = Squality(path=str(file)).manifest()
    assert source["encoding"] == "utf-8" and "replaced by U+FFFD" in source["found"]
