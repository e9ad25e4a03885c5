"""Which class a token has: hand-made sentences, every kind of tokenizer, and that the classes of a scheme are a partition."""

import logging
import sys

import pytest
from conftest import TINY_MODEL, sentencepiece
from transformers import AutoTokenizer

from msrnn_bench.datasets.chunks import chunks, located
from msrnn_bench.datasets.texts import PySource, Text
from msrnn_bench.errors import MachineError, UsageError
from msrnn_bench.figures import _published, _tags
from msrnn_bench.models.tokenizer import bytes_tokenizer
from msrnn_bench.tasks.staying import characters, source, words
from msrnn_bench.tasks.staying.classes import NAMES, Classes, schemes

TOKENIZERS = {
    "bytes": bytes_tokenizer,
    "tiny": lambda: AutoTokenizer.from_pretrained(TINY_MODEL),
    "sentencepiece": lambda: sentencepiece([("▁", "t"), ("▁t", "h"), ("▁th", "e")]),
}
SENTENCE = (
    "The boys' dogs (all of John's) cost $5 each, said she. \"It's the one that doesn't bark [ever]!\"\n\n“And you,” he asked — "
    "‘who’s that?’ Mr. Smith and/or 3/4 of us… 'Tis 'em: the dogs'.\n"
)


def pieces(text, tokenizer):
    ids, spans = located(tokenizer, text, 10_000)
    assert ids == tokenizer(text, add_special_tokens=False).input_ids
    return spans


def told(text, classes, spans):
    """word -> class of the tokens that it is made of, for words that stand once in the text."""

    def of(word, occurrence=0):
        at = -1
        for _ in range(occurrence + 1):
            at = text.index(word, at + 1)
        inside = [
            kind
            for (start, end), kind in zip(spans, classes, strict=True)
            if start < at + len(word) and end > at and text[start:end].strip()
        ]
        assert inside, word
        return set(inside)

    return of


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_words_of_a_sentence_have_their_classes_on_their_tokens(name, caplog):
    """However a tokenizer cuts them. `.”` and the like are no one token here; see the next test."""
    spans = pieces(SENTENCE, TOKENIZERS[name]())
    found = words.classify(SENTENCE, spans)
    assert set(found) <= set(words.NAMES) and "untagged" not in found and not caplog.records
    of = told(SENTENCE, found, spans)
    for word, tag in {
        "boys": "NNS", "' dogs": "POS", "(": "(", "John": "NNP", "'s)": "POS", ")": ")", "$": "$", "5": "CD", ",": ",",
        "[": "(", "]": ")", "!": ".", "“": "quote_open", "”": "quote_close", "—": ":", "‘": "quote_open", "’s that": "VBZ",
        "?": ".", "Mr.": "NNP", "and/or": "NN", "3/4": "CD", "…": ":", "n't": "RB", "each": "DT",
    }.items():  # fmt: skip
        if word == "' dogs":
            assert tag in of("'"), word
        elif word in ("'s)", "’s that"):
            assert tag in of(word), word
        else:
            assert of(word) == {tag}, (word, of(word))
    assert "VBZ" in of("'s the") and "POS" not in of("'s the"), "it's is no possessive"
    assert of('"') == {"quote_open"} and of('"', 1) == {"quote_close"}
    assert of("'em"[1:], 0) != set() and of("dogs'", 0) == {"NNS", "POS"}
    assert {found[n] for n, span in enumerate(spans) if "\n" in SENTENCE[slice(*span)]} == {"newline"}


def test_a_token_of_several_words_is_its_first_or_a_closing_quote():
    text = 'He said “no.” (So.) "Yes!"'
    spans = [(0, 2), (2, 7), (7, 9), (9, 11), (11, 13), (13, 15), (15, 17), (17, 19), (19, 21), (21, 24), (24, 26)]
    assert [text[slice(*span)] for span in spans][4:8] == [".”", " (", "So", ".)"]
    for module, stop, opening in ((words, ".", "("), (characters, "stop", "bracket_open")):
        found = module.classify(text, spans)
        assert found[2] == found[8] == "quote_open" and found[4] == found[10] == "quote_close"
        assert found[5] == opening and found[7] == stop


def test_quotation_marks_by_their_neighbours():
    text = "'I don't know,' said Tom. \"'Tis the dogs' house\"—\"no\" 'x'.\n\n\" odd \" and the boys' own; f(\"a\", 'b')"
    kinds = characters.quotes(text, len(text))
    assert "".join({"quote_open": "(", "quote_close": ")", "apostrophe": "'"}[kinds[at]] for at in sorted(kinds)) == (
        "(')" + "(''" + ")" + "()()" + "()" + "'" + "()()"
    )


def test_sentences_end_where_a_capital_follows():
    text = "Mr. J. Smith came at 5.30 p.m. on Monday. He left!\n\nwithout a word. “Why?” asked no one... but Ann. 3 did."
    found = [text[a:b].strip() for a, b in words.sentences(text, len(text))]
    assert found == [
        "Mr. J. Smith came at 5.30 p.m. on Monday.", "He left!", "without a word.", "“Why?” asked no one... but Ann.", "3 did.",
    ]  # fmt: skip
    assert "".join(text[a:b] for a, b in words.sentences(text, len(text))) == text
    assert [a for a, _ in words.sentences(text, 45)] == [0, 42]


def test_characters():
    text = "He paid $1,234 (that is: 12% more); WE didn't?\n  été_x – ok"
    spans = pieces(text, TOKENIZERS["tiny"]())
    found = characters.classify(text, spans)
    by_character = {at: kind for (start, end), kind in zip(spans, found, strict=True) for at in range(start, end)}
    for word, kind in {
        "H": "capitalised", "$": "currency", ",": "comma", "1": "digit", "(": "bracket_open", ":": "colon", "%": "symbol",
        ")": "bracket_close", ";": "semicolon", "'": "apostrophe", "?": "question", "\n": "newline", "_": "symbol", "–": "dash",
    }.items():  # fmt: skip
        assert by_character[text.index(word)] == kind, word
    assert characters.classify("unbelievable", [(0, 2), (2, 12)]) == ["other", "continuation"]
    assert characters.classify("é a", [(0, 1), (0, 1), (1, 2), (2, 3)]) == ["other", "continuation", "space", "other"]


PYTHON = 'def f(x, *, y=1.5):\n    """Say\n    so."""\n    return f"{x!r} {y}" + "b"  # a word\n\n\nclass A: pass\n'


@pytest.mark.parametrize("name", TOKENIZERS)
def test_python_tokens(name):
    spans = pieces(PYTHON, TOKENIZERS[name]())
    found = source.classify(PYTHON, spans, "x")
    assert set(found) <= set(source.NAMES) and "untokenized" not in found
    of = told(PYTHON, found, spans)
    for word, kind in {
        "def": "keyword", "y": "name", "(": "operator", "1.5": "number", "Say": "string", "so.": "string", "return": "keyword",
        "{x!r} {y}": "string", "+": "operator", "b\"": "string", "# a word": "comment", "class": "keyword", "A": "name",
    }.items():  # fmt: skip
        assert of(word) == {kind}, word
    if name == "bytes":
        assert found[PYTHON.index("\n")] == "newline" and found[PYTHON.index("    return")] == "indentation"
        assert found[PYTHON.index(" f(")] == "space" and found[PYTHON.index("\n    so")] == "string"


def test_a_document_that_begins_in_the_middle_is_tokenized_whole(tmp_path):
    dataset = PySource(name="pysource", modules=("textwrap",), start=0.3)
    tokenizer = bytes_tokenizer()
    found = chunks(dataset, tokenizer, context=256, documents=1, tokens=512)
    cut = Classes(dataset, 1, tokenizer, ("token",), found)
    plain = PySource(name="pysource", modules=("textwrap",))
    text, whole = plain.documents(1)[0].text, dataset.documents(1)[0].text
    spans = [(at, at + 1) for at in range(len(text))]
    wanted = source.classify(text, spans, "x")[len(text) - len(whole) :]
    assert [NAMES["token"][c] for chunk in found for c in cut.of(chunk)["token"]] == wanted[:512]


def test_no_source_is_refused_by_name():
    text = "It is a truth (universally acknowledged\n"
    with pytest.raises(UsageError, match=r"x is no Python source.*leave it out"):
        source.classify(text, [(0, 2)], "x")


def test_chunks_know_where_their_tokens_stand(tmp_path):
    """With marks of beginning, with what is skipped, and with documents packed into one stream."""
    for number, text in enumerate((SENTENCE * 3, PYTHON * 3, SENTENCE)):
        (tmp_path / f"{number}.txt").write_text(text)
    for tokenizer in (make() for make in TOKENIZERS.values()):
        for more in ({}, {"skip": 7}, {"pack": True}, {"pack": True, "skip": 5}):
            dataset = Text(path=str(tmp_path), bos="auto", **more)
            documents = dataset.documents()
            found = chunks(dataset, tokenizer, context=32)
            assert len(found) > 4
            for chunk in found:
                placed = 0
                for run in chunk.runs:
                    ids, spans = located(tokenizer, documents[run.document].text, run.first + run.count)
                    assert chunk.ids[run.at : run.at + run.count] == ids[run.first :]
                    placed += run.count
                marks = sum(token == tokenizer.bos_token_id for token in chunk.ids) if chunk.bos else 0
                assert placed + marks == len(chunk.ids)
            classes = Classes(dataset, None, tokenizer, ("char", "pos"), found)
            codes = classes.of(found[0])
            assert NAMES["char"][codes["char"][0]] == "first" and {*codes} == {"char", "pos"}
            assert (NAMES["pos"][codes["pos"][0]] == "special") == (found[0].bos and not more.get("skip", 0) > 10**6)


def test_what_auto_is():
    prose, code = Text(path="x"), PySource(name="pysource", modules=("textwrap",))
    assert schemes("auto", prose) == ("char", "pos") and schemes("auto", code) == ("char", "token")
    assert schemes(("pos",), code) == ("pos",) and schemes((), prose) == ()


def test_a_tokenizer_without_offsets_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text(SENTENCE)
    dataset, tokenizer = Text(path=str(tmp_path)), bytes_tokenizer()
    found = chunks(dataset, tokenizer, context=32)

    class Slow:
        is_fast = False

    with pytest.raises(UsageError, match=r"Slow does not tell.*task.classes=\[\]"):
        Classes(dataset, None, Slow(), ("char",), found).of(found[0])


def test_a_missing_tagger_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "textblob", None)
    monkeypatch.setattr(words, "find_spec", lambda name: None if name == "textblob" else True)
    with pytest.raises(MachineError, match=r"textblob, which is not installed: pip install msrnn-bench\[pos\]"):
        words.check_installed()


def test_words_that_cannot_be_found_again_are_a_class_of_their_own(monkeypatch, caplog):
    monkeypatch.setattr(words, "words", lambda text, begin, end: None)
    with caplog.at_level(logging.WARNING):
        assert words.classify("Go on.", [(0, 2), (2, 5), (5, 6)]) == ["untagged"] * 3
    assert "1 sentences could not be cut" in caplog.text


def test_published_tags_that_agree_are_published_and_ours():
    table = _published.read()
    printed = set(table[table["experiment"] == "pos_lifetime_table5"]["metric"].str.extract(r"tag=(.*)\]")[0])
    assert set(_tags.SAME_MEANING) <= printed and set(_tags.SAME_MEANING.values()) <= set(NAMES["pos"])
    assert printed - set(_tags.SAME_MEANING) == {"Avg.", "FW", "UH", "NNPS", "SYM"}
