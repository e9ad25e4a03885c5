"""Datasets and chunks: what is read, how it is identified, what is cut, and what is said when that cannot be done."""

import gzip
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import network
import pytest
import torch
from conftest import HELD_OUT, ROOT, TINY_MODEL, default_model
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from msrnn_bench.datasets.chunks import MARGIN, Chunk, chunks, tokenise
from msrnn_bench.datasets.reading import strip_gutenberg
from msrnn_bench.datasets.texts import Hub, PyDocs, PySource, Text
from msrnn_bench.errors import MachineError, UsageError

CONFIGS = sorted((ROOT / "conf" / "dataset").rglob("*.yaml"))


def from_yaml(name, **changes):
    config = OmegaConf.load(ROOT / "conf" / "dataset" / f"{name}.yaml")
    return instantiate(OmegaConf.merge(config, changes), _convert_="all")


def refusal(kind, call, *args, **kwargs):
    """The message of an expected error, which must be one readable line."""
    with pytest.raises(UsageError) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message and 10 < len(message) < 500
    return message


def byte_tokenizer(bos=None, adds=False):
    """One token a byte; `bos` is the mark's text, `adds` whether the tokenizer puts it in front by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.add_special_tokens([bos])
    if adds:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 256)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, model_max_length=64)


PLAIN, NAMED, ADDING = byte_tokenizer(), byte_tokenizer("<s>"), byte_tokenizer("<s>", adds=True)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(file)

    return write


# --- configurations and sources ---


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_yaml_lists_every_field(file):
    config = OmegaConf.load(file)
    dataset = instantiate(config, _convert_="all")
    assert set(config) - {"_target_"} == {field.name for field in fields(dataset)}
    assert dataset.name and hash(dataset) == hash(instantiate(config, _convert_="all"))


def test_pysource_is_long_modules_of_the_running_python():
    dataset = from_yaml("pysource")
    documents = dataset.documents()
    assert len(documents) >= 16 and len({document.name for document in documents}) == len(documents)
    assert all(len(document.text) > 45_000 for document in documents)
    assert documents[0].text.startswith("# Author: Steven J. Bethard") and documents[0].name == "argparse"
    assert dataset.documents(3) == documents[:3]
    manifest = dataset.manifest(3)
    assert manifest["python"] == ".".join(map(str, sys.version_info[:3]))
    assert manifest["fingerprint"] == dataset.fingerprint(3) != dataset.fingerprint()
    assert [entry["name"] for entry in manifest["listed"]] == ["argparse", "typing", "inspect"]
    json.dumps(manifest)


def test_pysource_takes_no_file_of_the_users(monkeypatch, write, tmp_path):
    write("json/scanner.py", "mine = True")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "mine" not in PySource(modules=("json.scanner",)).documents()[0].text
    assert "no_such_module" in refusal(MachineError, PySource(modules=("no_such_module",)).documents)
    assert "[argparse]" in refusal(UsageError, PySource, modules="argparse")


def test_pydocs_holds_every_topic_once():
    from pydoc_data.topics import topics

    documents = from_yaml("pydocs").documents()
    assert len(documents) == 8 and min(len(document.text) for document in documents) > 25_000
    assert "\n\n".join(document.text for document in documents) == "\n\n".join(topics[name] for name in sorted(topics))
    assert "parts" in refusal(UsageError, lambda: PyDocs(parts=0).documents())


def test_nothing_here_imports_torch():
    code = (
        "import sys; from msrnn_bench.datasets.texts import PyDocs, Text; PyDocs().fingerprint();"
        f"Text(path={str(Path(__file__))!r}).fingerprint();"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# --- files ---


def test_fingerprint_follows_content_not_path(write):
    first, other = Text(path=write("a/book.txt", "one\ntwo")), Text(path=write("b/c/novel.md", b"one\r\ntwo"))
    assert first.fingerprint() == other.fingerprint()
    assert first.name == "book" and other.name == "novel"
    before = first.fingerprint()
    write("a/book.txt", "one\ntwO")
    assert first.fingerprint() != before, "an edit must be seen, even by the same object"
    assert first.documents()[0].text == "one\ntwO"


def test_fingerprint_follows_the_choices(write):
    path = write("book.txt", "0123456789")
    choices = [{}, {"start": 0.5}, {"skip": 1}, {"bos": "never"}, {"pack": True}]
    assert len({Text(path=path, **choice).fingerprint() for choice in choices}) == len(choices)
    write("two/a.txt", "ab"), write("two/b.txt", "c"), write("other/a.txt", "a"), write("other/b.txt", "bc")
    folder = Path(path).parent
    assert Text(path=str(folder / "two")).fingerprint() != Text(path=str(folder / "other")).fingerprint()


def test_folder_glob_and_names(write, tmp_path, monkeypatch):
    for name in ("b.txt", "a.md", "deep/c.py", "deep/d.txt.gz", "same.txt", "same.md", ".hidden", ".git/config"):
        write(name, gzip.compress(b"text") if name.endswith(".gz") else "text")
    names = [document.name for document in Text(path=str(tmp_path)).documents()]
    assert names == ["a", "b", "deep/c", "deep/d", "same.md", "same.txt"]
    assert [d.name for d in Text(path=str(tmp_path / "*.txt")).documents()] == ["b", "same"]
    assert [d.name for d in Text(path=str(tmp_path / "**" / "*.py")).documents()] == ["c"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Text(path="b.txt").documents() == Text(path="~/b.txt").documents() != []
    assert Text(path="deep").name == "deep" == Text(path=str(tmp_path / "deep" / "*.txt")).name
    assert len(Text(path=str(tmp_path)).documents(2)) == 2


ACCENTS = "Le café où naïve Zoë goûta l'hæmatite, déjà ; “ça”, dit-elle — trop tôt.\n" * 20
LATIN = ACCENTS.replace("“", '"').replace("”", '"').replace("—", "-")
RUSSIAN = "Однажды весною, в час небывало жаркого заката, появились два гражданина.\n" * 20


@pytest.mark.parametrize(
    ("text", "encoding", "used"),
    [
        (ACCENTS, "utf-8", "utf-8"),
        (ACCENTS, "utf-8-sig", "utf-8-sig"),
        (ACCENTS, "utf-16", "utf-16"),
        (ACCENTS, "utf-32", "utf-32"),
        (ACCENTS, "cp1252", "cp1252"),
        (LATIN, "iso-8859-1", "cp1252"),
        ("naïve café", "iso-8859-1", "cp1252"),
        ("A long English text with one accent only.\n" * 500 + "He ate pâté.\n", "iso-8859-1", "cp1252"),
        (RUSSIAN, "cp1251", "cp1251"),
        (RUSSIAN, "koi8-r", "koi8_r"),
    ],
)
def test_encodings_are_told(write, text, encoding, used):
    (document,) = Text(path=write("book.txt", text.encode(encoding))).documents()
    assert document.text == text and document.encoding == used


def test_encoding_can_be_named(write):
    hungarian = "Minden ember őszinte és tűrő.\n"
    path = write("book.txt", hungarian.encode("cp1250"))
    assert Text(path=path, encoding="cp1250").documents()[0].text == hungarian
    assert "dataset.encoding" in refusal(UsageError, Text(path=path, encoding="utf-8").documents)
    assert "nope" in refusal(UsageError, Text(path=path, encoding="nope").documents)


def test_line_ends_and_gzip(write):
    plain = Text(path=write("a.txt", "one\r\ntwo\rthree\n\r\n"))
    packed = Text(path=write("b.txt.gz", gzip.compress(b"one\r\ntwo\rthree\n\r\n")))
    assert plain.documents()[0].text == "one\ntwo\nthree\n\n" and plain.fingerprint() == packed.fingerprint()
    assert packed.documents()[0].name == packed.name == "b"
    assert "gzip" in refusal(UsageError, Text(path=write("c.gz", b"not gzip at all")).documents)
    assert "gzip" in refusal(UsageError, Text(path=write("d.gz", gzip.compress(b"cut" * 99)[:-9])).documents)


def test_json_lines(write):
    lines = '{"text": "one\\r\\ntwo", "title": "t", "n": 1}\n\n{"text": "half \\ud800", "title": "u", "n": 2}\n'
    for path in (write("a.jsonl", lines), write("a.jsonl.gz", gzip.compress(lines.encode()))):
        documents = Text(path=path).documents()
        assert [(d.name, d.text) for d in documents] == [("a/0000", "one\ntwo"), ("a/0001", "half ?")]
        assert [d.text for d in Text(path=path, field="title").documents()] == ["t", "u"]
        message = refusal(UsageError, Text(path=path, field="story").documents)
        assert "'story'" in message and "text, title" in message and "line 1" in message
    assert "line 2" in refusal(UsageError, Text(path=write("b.jsonl", '{"text": "a"}\n{"text": ')).documents)
    assert "field" in refusal(UsageError, Text(path=write("c.jsonl", "[1, 2]\n")).documents)


def test_separator_and_min_characters(write):
    path = write("tales.txt", "\n a tale \n<|endoftext|>\r\nx\r\n<|endoftext|>another tale<|endoftext|>")
    split = {"path": path, "separator": "<|endoftext|>"}
    assert [(d.name, d.text) for d in Text(**split).documents()] == [
        ("tales/0000", "a tale"),
        ("tales/0001", "x"),
        ("tales/0002", "another tale"),
    ]
    assert [d.name for d in Text(**split, min_characters=6).documents()] == ["tales/0002"]
    assert "more than 99" in refusal(UsageError, Text(**split, min_characters=99).documents)


@pytest.mark.parametrize(
    ("head", "foot"),
    [
        ("*** START OF THE PROJECT GUTENBERG EBOOK A TALE ***", "*** END OF THE PROJECT GUTENBERG EBOOK A TALE ***"),
        ("***START OF THIS PROJECT GUTENBERG EBOOK A\nLONG TITLE***", "End of the Project Gutenberg EBook of A Tale"),
        ("*** START OF THIS PROJECT GUTENBERG EBOOK A TALE", "***END OF THE PROJECT GUTENBERG EBOOK A TALE***"),
        ("*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*", "End of Project Gutenberg's A Tale"),
        ("*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.1*END*", "End of The Project Gutenberg Etext of A Tale"),
    ],
)
def test_gutenberg_is_cut_when_asked(write, head, foot):
    book = "A TALE\n\nOnce * * * upon a time.\n*** not a mark ***\nThe End of all."
    before, after = "The Project Gutenberg EBook of A Tale", "licence\n*END*THE SMALL PRINT!"
    path = write("pg1.txt", "\r\n".join([before, head, "", book, "", foot, after]))
    assert Text(path=path, strip_gutenberg=True).documents()[0].text == book
    assert "licence" in Text(path=path).documents()[0].text
    assert strip_gutenberg(book) == book


def novel(title: str, body: str, encoding: str, used: str = "utf-8") -> bytes:
    """A book as Project Gutenberg sends it: CRLF, header and licence around it, the encoding named in the header."""
    lines = [
        f"The Project Gutenberg EBook of {title}, by A. Writer", "", "re-use it under the terms of the Project Gutenberg License",
        f"Title: {title}", "", f"Character set encoding: {encoding}", "",
        f"*** START OF THIS PROJECT GUTENBERG EBOOK {title.upper()} ***", "", "", "Produced by C. Reader", "", body, "", "",
        f"End of the Project Gutenberg EBook of {title}, by A. Writer", "",
        f"*** END OF THIS PROJECT GUTENBERG EBOOK {title.upper()} ***", "", "*** START: FULL LICENSE ***", "",
        "THE FULL PROJECT GUTENBERG LICENSE", "Project Gutenberg License", "",
    ]  # fmt: skip
    return "\n".join(lines).replace("\n", "\r\n").encode(used)


def test_the_novels(write, tmp_path):
    """A folder of long books in unlike encodings, each read as what it is, without what stands around it."""
    plain = "CHAPTER I.\n\nShe came at ten, and nobody else did.\n\n" * 4000
    old = "The calèche of the mediæval count cost £10; his naïveté was zoöphagous.\n"  # one line of 200 KB
    new = "“You doubt me,” she said — and left.\n"
    write("a_plain.txt", novel("The Plain", plain, "ASCII"))
    write("b_latin1.txt", novel("The Old", plain + old + plain, "ISO-8859-1", "iso-8859-1"))
    write("c_utf8.txt", novel("The New", new + plain, "UTF-8"))
    write("d_marked.txt", novel("The Marked", new + plain, "UTF-8", "utf-8-sig"))
    novels = {document.name: document for document in Text(path=str(tmp_path), strip_gutenberg=True).documents()}
    assert list(novels) == ["a_plain", "b_latin1", "c_utf8", "d_marked"]
    for found in novels.values():
        assert "Project Gutenberg" not in found.text and "***" not in found.text and "\r" not in found.text
        assert found.text.startswith("Produced by C. Reader\n\n") and found.text.endswith("nobody else did.")
    assert novels["b_latin1"].encoding == "cp1252" and old in novels["b_latin1"].text
    assert new in novels["c_utf8"].text and "\ufeff" not in novels["d_marked"].text
    assert novels["c_utf8"].text == novels["d_marked"].text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no text"),
        (" \n\n", "no text"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "binary"),
        (b"plain \x00 ascii", "binary"),
        (bytes(range(1, 256)) * 4, "cannot be told"),
    ],
)
def test_files_that_hold_no_text(write, content, says):
    assert says in refusal(UsageError, Text(path=write("file.txt", content)).documents)


def test_bad_settings(tmp_path, write):
    assert "does not exist" in refusal(UsageError, Text(path=str(tmp_path / "gone.txt")).documents)
    assert "matches no file" in refusal(UsageError, Text(path=str(tmp_path / "*.txt")).documents)
    assert "holds no files" in refusal(UsageError, Text(path=str(tmp_path)).fingerprint)
    assert "dataset.path" in refusal(UsageError, Text().documents)
    for bad in ({"start": 1.0}, {"start": "x"}, {"skip": -1}, {"bos": "maybe"}, {"pack": "x"}, {"path": 3}):
        assert f"dataset.{next(iter(bad))}" in refusal(UsageError, Text, **bad)
    assert "documents=0" in refusal(UsageError, Text(path=write("a.txt", "a")).documents, 0)


# --- the hub ---


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A local folder in the shape of PG-19's repository; `datasets` keeps its copies out of the user's cache."""
    import datasets
    import pandas

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = {"short_book_title": ["A", "B", "A"], "year": [1, 2, 3], "text": ["one\r\ntwo", "é", "three"]}
    (tmp_path / "pg").mkdir()
    pandas.DataFrame(rows).to_parquet(tmp_path / "pg" / "test-00000-of-00001.parquet")
    return tmp_path / "pg"


def test_hub_reads_the_shape_of_pg19(folder):
    dataset = from_yaml("pg19", repo=str(folder))
    assert [(d.name, d.text) for d in dataset.documents()] == [("A", "one\ntwo"), ("B", "é"), ("test/0002", "three")]
    assert [d.name for d in Hub(repo=str(folder)).documents(2)] == ["test/0000", "test/0001"]
    assert dataset.manifest()["commit"] is None and Hub(repo=str(folder)).name == "pg"
    assert "'story'" in refusal(UsageError, Hub(repo=str(folder), field="story").documents)
    assert "'year'" in refusal(UsageError, Hub(repo=str(folder), field="year").documents)
    assert "nope" in refusal(UsageError, Hub(repo=str(folder), split="nope").documents)
    assert "nope" in refusal(UsageError, Hub(repo=str(folder), config="nope").documents)
    assert "dataset.repo" in refusal(UsageError, Hub().documents)


def test_hub_without_network_is_told_at_once(tmp_path, monkeypatch):
    network.point_to("http://hub.invalid", tmp_path, monkeypatch)
    asked = network.no_network(monkeypatch)
    message = refusal(MachineError, from_yaml("pg19").documents)
    assert "dataset=text dataset.path=FOLDER" in message and "emozilla/pg19-test" in message
    assert len(asked) == 1


def test_hub_folder_that_is_not_there(tmp_path):
    assert "neither a folder" in refusal(UsageError, Hub(repo=str(tmp_path / "gone")).documents)


# --- chunks ---


def cut(path, tokenizer=PLAIN, context=4, documents=None, tokens=None, **settings):
    return chunks(Text(path=path, **settings), tokenizer, context=context, documents=documents, tokens=tokens)


def decoded(found, tokenizer=PLAIN):
    return [tokenizer.decode(chunk.ids) for chunk in found]


def test_full_chunks_only(write, tmp_path):
    write("a.txt", "0123456789"), write("b.txt", "abc"), write("c.txt", "ABCD")
    found = cut(str(tmp_path))
    assert [(c.document, c.index) for c in found] == [("a", 0), ("a", 1), ("c", 0)]
    assert decoded(found) == ["0123", "4567", "ABCD"] and not any(c.bos for c in found)
    assert decoded(cut(str(tmp_path), documents=1)) == ["0123", "4567"]
    assert decoded(cut(str(tmp_path), tokens=4)) == decoded(cut(str(tmp_path), tokens=7)) == ["0123", "ABCD"]
    assert decoded(cut(str(tmp_path), start=0.3)) == ["3456"]
    assert decoded(cut(str(tmp_path), skip=2)) == ["2345", "6789"]
    assert decoded(cut(str(tmp_path), skip=2, start=0.2, tokens=4)) == ["4567"]


def test_the_mark_of_beginning(write):
    path, mark = write("a.txt", "0123456789"), NAMED.bos_token_id
    for tokenizer, bos in ((PLAIN, "auto"), (PLAIN, "never"), (NAMED, "auto"), (NAMED, "never"), (ADDING, "never")):
        assert [len(c.ids) for c in cut(path, tokenizer, bos=bos)] == [4, 4]
        assert not any(mark in c.ids or c.bos for c in cut(path, tokenizer, bos=bos))
    for tokenizer, bos in ((NAMED, "always"), (ADDING, "auto"), (ADDING, "always")):
        found = cut(path, tokenizer, bos=bos)
        assert all(c.bos and c.ids[0] == mark and mark not in c.ids[1:] and len(c.ids) == 4 for c in found)
        assert decoded([Chunk(c.document, c.index, c.ids[1:], c.bos) for c in found]) == ["012", "345", "678"]
        assert len(cut(path, tokenizer, bos=bos, tokens=8)) == 2
    assert "bos=always" in refusal(UsageError, cut, path, PLAIN, bos="always")
    assert "tokenizer" in refusal(UsageError, cut, path, None)


def test_marks_in_a_text_are_text(write, caplog):
    path = write("a.txt", "<s>" * 100)
    found = cut(path, ADDING, context=11, bos="never")
    assert not any(ADDING.bos_token_id in c.ids for c in found) and decoded(found)[0] == "<s><s><s><s"
    assert not caplog.records, "no warning about the length of a text"
    assert ADDING("<s>")["input_ids"] == [256, 256], "the caller's tokenizer stays as it was"


def test_pack(write, tmp_path):
    write("a.txt", "01234"), write("b.txt", "ab"), write("c.txt", "ABCDE")
    mark = ADDING.bos_token_id
    stream = [mark, *PLAIN("01234")["input_ids"], mark, *PLAIN("ab")["input_ids"], mark, *PLAIN("ABCDE")["input_ids"]]
    found = cut(str(tmp_path), ADDING, pack=True)
    assert [c.document for c in found] == ["pack#0000", "pack#0001", "pack#0002"] and all(c.index == 0 for c in found)
    assert [c.ids for c in found] == [stream[0:4], stream[4:8], stream[8:12]]
    assert [c.ids for c in cut(str(tmp_path), ADDING, pack=True, documents=2)] == [stream[0:4], stream[4:8]]
    assert decoded(cut(str(tmp_path), pack=True)) == ["0123", "4abA", "BCDE"]
    assert decoded(cut(str(tmp_path), pack=True, skip=1, tokens=2)) == ["12bB"]
    dataset = Text(path=str(tmp_path), pack=True)
    assert dataset.fingerprint(1) == dataset.fingerprint(), "one chunk may need many documents"


def test_too_little_text(write):
    path = write("a.txt", "0123456789")
    message = refusal(UsageError, cut, path, context=64, skip=3)
    assert "7 tokens" in message and "context=7 or less" in message
    assert "tokens=3" in refusal(UsageError, cut, path, tokens=3)
    assert "together" in refusal(UsageError, cut, path, context=64, pack=True)
    for bad in ({"context": 1}, {"context": 0}, {"documents": 0}, {"tokens": -1}):
        assert f"{next(iter(bad))}=" in refusal(UsageError, cut, path, **bad)


@pytest.mark.parametrize("wanted", [1, 500, 4096])
def test_a_beginning_is_tokenised_like_the_whole(wanted):
    text = PyDocs().documents(1)[0].text
    seen = []

    def counting(text, **kwargs):
        seen.append(len(text))
        return PLAIN(text, **kwargs)

    assert tokenise(counting, text, wanted) == tokenise(PLAIN, text)[:wanted]
    assert max(seen) == 8 * (wanted + MARGIN) < len(text)


def test_a_beginning_grows_until_it_is_long_enough():
    lengths = []

    def sparse(text, **kwargs):
        lengths.append(len(text))
        return {"input_ids": [*range(len(text) // 100)]}

    assert tokenise(sparse, "x" * 1_000_000, 200) == [*range(200)]
    assert lengths == [8 * (200 + MARGIN) * 2**step for step in range(len(lengths))] and 1 < len(lengths) < 6
    assert tokenise(sparse, "x" * 1_000, 200) == [*range(10)]


def test_smollm2_reads_a_third_on_and_a_beginning_like_the_whole(write, tmp_path):
    """What it makes of two novels from a third on was measured elsewhere; their first words there stand for them here."""
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    measured = {"tude, but said": [100, 8273, 28, 564, 1137], " objects, whiteness refining": [3401, 28, 19302, 8051, 18509]}
    for number, words in enumerate(measured):
        page = "it was\n" * 10 + (words + "\nand so on\n" * 20)[:140]
        write(f"{number}.txt", page.replace("\n", "\r\n"))
    found = chunks(Text(path=str(tmp_path), start=1 / 3), tokenizer, context=16, documents=None, tokens=16)
    assert [list(chunk.ids[:5]) for chunk in found] == list(measured.values()) and not any(chunk.bos for chunk in found)
    for document in from_yaml("pysource").documents(4):
        assert tokenise(tokenizer, document.text, 4096) == tokenise(tokenizer, document.text)[:4096]


def test_packed_documents_give_the_loss_of_a_plain_reading(write):
    """Pieces behind each other, a mark before each, cut into chunks: by hand, and through the dataset."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32, attn_implementation="sdpa").eval()
    pieces = [piece.strip() for piece in HELD_OUT.read_text().split("\ndef ")]
    path = write("pieces.txt", "\n<|endoftext|>\n".join(pieces))
    dataset = from_yaml("text", path=path, separator="<|endoftext|>", min_characters=200, pack=True)
    found = chunks(dataset, tokenizer, context=512, documents=8, tokens=None)
    kept = [piece for piece in pieces if len(piece) > 200]
    assert 8 < len(kept) < len(pieces)
    stream = [token for piece in kept for token in [1, *tokenizer(piece, add_special_tokens=False)["input_ids"]]]
    wanted = torch.tensor(stream[: 8 * 512]).view(8, 512)
    ids = torch.tensor([chunk.ids for chunk in found])
    assert torch.equal(ids, wanted) and (ids == 1).sum() > 8
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    shuffled = ids[:, torch.randperm(512)]
    with torch.no_grad():
        other = model(shuffled).logits[:, :-1].flatten(0, 1)
    assert loss + 1 < torch.nn.functional.cross_entropy(other, shuffled[:, 1:].flatten()), "text, in its order"
