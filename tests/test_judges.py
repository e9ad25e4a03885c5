"""Judges: verdicts, both orders, an endpoint that misbehaves, a model that judges; and the figure of their verdicts."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import BEGINNING, TINY_MODEL, sentencepiece

from msrnn_bench.cli.main import main
from msrnn_bench.errors import MachineError, UsageError
from msrnn_bench.figures import draw
from msrnn_bench.models.sources import Loaded, bytes_tokenizer
from msrnn_bench.results.cells import COLUMN_TYPES, COLUMNS
from msrnn_bench.tasks.writing import judges
from msrnn_bench.tasks.writing.judges import (
    Endpoint,
    LocalJudge,
    UnjudgedError,
    check_judge_prompt,
    compare,
    endpoint_address,
    verdict,
)

PROMPT = "Asked: {request}\nA: {first}\nB: {second}\nBetter:"


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [("A", "A"), (" b.\n", "B"), ("**A**", "A"), ("[[B]]", "B"), ("Story A", "A"), ("Answer: B", "B"), ("tie", "tie"),
     ("It", None), ("A tie.", "tie"), ("(a)", "A"), ("Verdict: Story B!", "B"), ("", None), ("A or B", None), ("A B", None),
     ("a b", None), ("C", None), ("Apples", None), ("A, because it is longer", None), ("Both stories are fine.", None),
     ("neither", None), ("AB", None), ("Story", None)],
)  # fmt: skip
def test_a_verdict_is_the_whole_answer(answer: str, wanted: str | None):
    if wanted is None:
        with pytest.raises(UnjudgedError, match="neither A nor B"):
            verdict(answer)
    else:
        assert verdict(answer) == wanted


def better(*texts: str) -> Callable[[str, str, str], str]:
    """A judge that prefers the texts in this order, wherever they stand."""
    return lambda _, first, second: "A" if texts.index(first) < texts.index(second) else "B"


def test_a_win_counts_only_in_both_orders():
    assert compare(better("f", "o"), "r", full="f", ours="o")["outcome"] == "loss"
    won = compare(better("o", "f"), "r", full="f", ours="o")
    assert won == {"status": "ok", "outcome": "win", "verdicts": ["B", "A"], "reason": None}
    for stubborn in ("A", "B", "tie"):
        judged = compare(lambda *_, answer=stubborn: answer, "r", full="f", ours="o")
        assert judged["outcome"] == "tie" and judged["verdicts"] == [stubborn] * 2
    for answers in (["B", "tie"], ["tie", "A"], ["A", "tie"], ["tie", "B"]):
        given = iter(answers)
        assert compare(lambda *_, given=given: next(given), "r", full="f", ours="o")["outcome"] == "tie"


def test_identical_stories_are_dropped_unseen():
    def never(*_: str) -> str:
        raise AssertionError("asked")

    assert compare(never, "r", full="same", ours="same")["status"] == "identical"


def test_no_verdict_is_no_tie():
    def silent(_: str, first: str, second: str) -> str:
        if first == "o":
            raise UnjudgedError("timed out")
        return "A"

    pair = compare(silent, "r", full="f", ours="o")
    assert pair == {"status": "unjudged", "outcome": None, "verdicts": ["A"], "reason": "timed out"}


@pytest.mark.parametrize("template", ["{first} only", "{first} {second} {other}", "{first} {second} {", "{first} {}"])
def test_a_judges_prompt_shows_both_stories(template: str):
    with pytest.raises(UsageError, match="judge_prompt"):
        check_judge_prompt(template)
    check_judge_prompt("{second} {first}")
    check_judge_prompt(PROMPT)


# --- an endpoint


class Served:
    """What the endpoint saw, and how it answers: `answer(text)` is the message's content, or a (status, body)."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.answer: Callable[[str], Any] = lambda text: "A"
        self.url = ""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(judges, "PAUSE", 0.01)
    state, over = Served(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.paths.append(self.path)
            state.bodies.append(body)
            state.keys.append(self.headers["Authorization"])
            state.asked.append(body["messages"][0]["content"])
            answer = state.answer(state.asked[-1])
            if answer == "sleep":
                over.wait(5)  # longer than any client here waits
                return
            status, content = answer if isinstance(answer, tuple) else (200, completion(answer))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    yield state
    over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def completion(content: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


def endpoint(served: Served, **changes: Any) -> Endpoint:
    settings = {"url": served.url, "key": "secret", "model": "judge-1", "prompt": PROMPT, "temperature": 0.0, "timeout": 0.5}
    return Endpoint(**{**settings, **changes})


def test_an_endpoint_is_asked_in_both_orders(served: Served):
    served.answer = lambda text: "A" if text.index("good") < text.index("bad") else "Story B."
    assert compare(endpoint(served), "r", full="bad", ours="good")["outcome"] == "win"
    assert compare(endpoint(served), "r", full="good", ours="bad")["outcome"] == "loss"
    served.answer = lambda text: "A"
    assert compare(endpoint(served), "r{}", full="{bad}", ours="good")["outcome"] == "tie"
    assert served.asked[-2:] == [
        "Asked: r{}\nA: {bad}\nB: good\nBetter:", "Asked: r{}\nA: good\nB: {bad}\nBetter:",
    ]  # fmt: skip
    assert served.bodies[0] == {
        "model": "judge-1", "temperature": 0.0, "messages": [{"role": "user", "content": served.asked[0]}],
    }  # fmt: skip
    assert served.keys[0] == "Bearer secret" and set(served.paths) == {"/v1/chat/completions"}
    endpoint(served, key=None, temperature=None)("r", "one", "two")
    assert served.keys[-1] is None and "temperature" not in served.bodies[-1]
    assert "secret" not in repr(endpoint(served)) and "127.0.0.1" not in repr(endpoint(served))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("I like both.", "neither A nor B"), (None, "neither A nor B"), ((200, b"<html>busy</html>"), "no chat completion"),
     ((200, b'{"choices": []}'), "no chat completion"), ((200, b"[]"), "no chat completion"),
     ((500, b"down\nfor now"), "status 500: down for now"), ((400, b"too long"), "status 400: too long"),
     ((200, b"\xff\xfe"), "no chat completion")],
)  # fmt: skip
def test_garbage_is_unjudged(served: Served, answer: Any, reason: str):
    served.answer = lambda _: answer
    pair = compare(endpoint(served), "r", full="one", ours="two")
    assert pair["status"] == "unjudged" and pair["outcome"] is None and reason in pair["reason"]


def test_silence_is_unjudged_after_a_few_tries(served: Served):
    served.answer = lambda _: "sleep"
    begin = time.monotonic()
    pair = compare(endpoint(served), "r", full="one", ours="two")
    assert pair["status"] == "unjudged" and "timed out after 0.5 s" in pair["reason"]
    assert len(served.asked) == judges.TRIES and time.monotonic() - begin < 4


def test_a_busy_endpoint_is_asked_again(served: Served):
    served.answer = lambda _: (429, b"later") if len(served.asked) < 3 else "B"
    assert endpoint(served)("r", "one", "two") == "B" and len(served.asked) == 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_who_is_refused_is_told_where_to_look(served: Served, status: int):
    served.answer = lambda _: (status, b'{"error": "no"}')
    with pytest.raises(MachineError, match=rf"{status}.*MSRNN_JUDGE_URL, MSRNN_JUDGE_KEY and task.judge_model=judge-1") as error:
        endpoint(served)("r", "one", "two")
    assert len(served.asked) == 1 and "secret" not in str(error.value)


def test_nobody_there(served: Served):
    with pytest.raises(MachineError, match="MSRNN_JUDGE_URL cannot be reached"):
        endpoint(served, url="http://127.0.0.1:9/v1/chat/completions")("r", "one", "two")


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MSRNN_JUDGE_URL", raising=False)
    monkeypatch.delenv("MSRNN_JUDGE_KEY", raising=False)
    with pytest.raises(UsageError, match=r"MSRNN_JUDGE_URL is not set: export MSRNN_JUDGE_URL=.*MSRNN_JUDGE_KEY"):
        endpoint_address()
    monkeypatch.setenv("MSRNN_JUDGE_URL", "file:///etc/passwd")
    with pytest.raises(UsageError, match="no http address"):
        endpoint_address()
    monkeypatch.setenv("MSRNN_JUDGE_URL", "http://host/v1/")
    assert endpoint_address() == ("http://host/v1/chat/completions", None)
    monkeypatch.setenv("MSRNN_JUDGE_URL", "http://host/v1/chat/completions")
    monkeypatch.setenv("MSRNN_JUDGE_KEY", "k")
    assert endpoint_address() == ("http://host/v1/chat/completions", "k")


def test_the_whole_way_with_an_endpoint(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first pair is won, the second gets no verdict; neither address nor key is part of the cell or of any file."""
    given = [
        "run", "task=stories", f"task.prompt='{BEGINNING}'", "task.stories=2", "task.new_tokens=40", "policy=tova", "cache=8",
        "task.judge=endpoint", "task.judge_model=judge-1", "task.judge_timeout=0.5", "context=512", "model=local",
        f"model.path={TINY_MODEL}", f"results_dir={tmp_path}",
    ]  # fmt: skip
    monkeypatch.setenv("MSRNN_JUDGE_URL", served.url.removesuffix("/chat/completions"))
    monkeypatch.setenv("MSRNN_JUDGE_KEY", "secret")
    served.answer = lambda _: "BA"[len(served.asked) - 1] if len(served.asked) < 3 else "Hard to say."
    assert main(given) == 0
    (cell,) = (tmp_path / "cells").glob("*.csv")
    rows = pd.read_csv(cell).set_index(["metric", "document"])
    assert rows.loc[("win", 0), "total"] == 1 and rows.loc[("tie", 0), "total"] == rows.loc[("loss", 0), "total"] == 0
    assert rows.loc[("win", 1), "status"] == "unjudged" and pd.isna(rows.loc[("tie", 1), "total"])
    assert rows.loc[("length", 1), "status"] == "ok"
    records = {line["key"]: line for line in map(json.loads, cell.with_suffix(".jsonl").read_text().splitlines())}
    assert records["0000"]["text"] in served.asked[0] and records["full/0000"]["text"] in served.asked[0]
    assert records["pair/0001"]["reason"] == "answered 'Hard to say.', which is neither A nor B"
    for path in (tmp_path / "cells").iterdir():
        assert "secret" not in path.read_text() and served.url not in path.read_text()
    monkeypatch.setenv("MSRNN_JUDGE_URL", "http://elsewhere/v1")
    assert main(given) == 0 and len(list((tmp_path / "cells").glob("*.csv"))) == 1


# --- a model that judges


@pytest.fixture(scope="module")
def reader() -> Loaded:
    """A tiny model that reads bytes."""
    import transformers

    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=256, pad_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return Loaded(model, bytes_tokenizer(), {"positions": 256})


def test_a_model_judges_by_its_next_letter(reader: Loaded, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judges, "PIECE", 7)  # pieces change nothing
    judge = LocalJudge(loaded=reader, prompt=PROMPT)
    said = set()
    for index in range(12):
        one, two = f"story {index}", f"another {index * index}"
        ids = torch.tensor([reader.tokenizer(PROMPT.format(request="r", first=one, second=two) + " ")["input_ids"]])
        a, b = (reader.tokenizer(letter)["input_ids"][0] for letter in "AB")
        with torch.no_grad():
            logits = reader.model(ids).logits[0, -1]
        assert judge("r", one, two) == ("A" if logits[a] > logits[b] else "B")
        said.add(judge("r", one, two))
    assert said == {"A", "B"}
    with pytest.raises(UnjudgedError, match=r"256 positions for a question of 3.. tokens"):
        judge("r", "long " * 60, "short")


def test_a_model_that_chats_is_asked_in_chat(reader: Loaded):
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = "<u>{{ messages[0]['content'] }}<a>"
    judge = LocalJudge(loaded=Loaded(reader.model, tokenizer, {"positions": None}), prompt=PROMPT)
    ids, letters = judge._tokens("Which?")
    assert tokenizer.decode(ids) == "<u>Which?<a>" and [tokenizer.decode(pair) for pair in letters] == ["AB"]


def test_a_letter_counts_with_and_without_its_space_where_both_are_tokens():
    """Here " B" is a token and " A" is none, so that a judge would compare a letter with a half of another."""
    tokenizer = sentencepiece(merges=[("▁", "B")])
    ids, letters = LocalJudge(loaded=Loaded(None, tokenizer, {"positions": None}), prompt=PROMPT)._tokens("Answer:")
    assert ids[0] == tokenizer.bos_token_id and tokenizer.convert_ids_to_tokens(ids)[-1] == ":"
    assert [tokenizer.convert_ids_to_tokens(pair) for pair in letters] == [["A", "B"]]
    both = sentencepiece(merges=[("▁", "A"), ("▁", "B")])
    _, letters = LocalJudge(loaded=Loaded(None, both, {"positions": None}), prompt=PROMPT)._tokens("Answer:")
    assert [both.convert_ids_to_tokens(pair) for pair in letters] == [["▁A", "▁B"], ["A", "B"]]


def test_a_byte_pair_tokenizer_has_both():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merged = {"ĠA": 256, "ĠB": 257}
    core = Tokenizer(models.BPE({**letters, **merged}, merges=[("Ġ", "A"), ("Ġ", "B")]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    judge = LocalJudge(loaded=Loaded(None, tokenizer, {"positions": None}), prompt=PROMPT)
    ids, found = judge._tokens("Answer:")
    assert tokenizer.decode(ids) == "Answer:" and found == [[256, 257], [letters["A"], letters["B"]]]


# --- the figure


def judged(policy: str = "tova", cache: int = 256, counts: tuple[int, ...] = (6, 47, 47, 0, 0), **changes: Any) -> list[dict]:
    """Rows of one cell: so many wins, ties, losses, unjudged and identical pairs."""
    common = {
        "cell": f"{policy}-{cache}", "task": "stories", "dataset": "none", "model": "mythologic", "weights": "pretrained",
        "policy": policy, "memory": 0.0, "first": 0, "per": "layer", "cache": cache, "context": 4096, "seed": 0, "bos": True,
        "dtype": "bfloat16", "engine": "scan", "prefill": "stepwise", "positions": "original", "template": "plain",
        "bucket_start": 9, "bucket_end": 99, **changes,
    }  # fmt: skip
    names = [name for name, n in zip(("win", "tie", "loss", "unjudged", "identical"), counts, strict=True) for _ in range(n)]
    rows = []
    for number, name in enumerate(names):
        ok = name in ("win", "tie", "loss")
        for metric in ("win", "tie", "loss"):
            value = {"total": float(name == metric) if ok else None, "count": int(ok), "status": "ok" if ok else name}
            rows.append({**common, "document": f"{number:04d}", "metric": metric, **value})
    return rows


def tidy(*parts: list[dict]) -> pd.DataFrame:
    frame = pd.DataFrame([row for part in parts for row in part], columns=list(COLUMNS))
    return frame.astype({name: kind for name, (kind, _) in COLUMN_TYPES.items()})


def test_the_papers_figure():
    figure = draw(
        "judged", tidy(judged(cache=1024, counts=(5, 88, 6, 1, 0)), judged(), judged(cache=512, counts=(10, 71, 19, 3, 2)))
    )
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["256", "512", "1024"]
    assert ax.yaxis_inverted()  # the smallest size at the top
    widths = [patch.get_width() for patch in ax.patches]
    assert widths[:6] == [6, 47, 47, 10, 71, 19] and widths[6:] == pytest.approx([500 / 99, 8800 / 99, 600 / 99])
    texts = [text.get_text() for text in ax.texts]
    assert texts[:4] == ["6%", "47%", "47%", "n = 100"] and texts[-1] == "n = 99"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Win", "Tie", "Loss"]
    (caption,) = (text.get_text().replace("\n", " ") for text in figure.texts)
    assert "identical and dropped: 2 at TOVA 512." in caption and "(no tie): 3 at TOVA 512, 1 at TOVA 1024." in caption


def test_policies_and_models_have_panels_of_their_own():
    figure = draw(
        "judged", tidy(judged(), judged("window4", counts=(0, 0, 0, 4, 0)), judged(model="x", weights="random", cell="r"))
    )
    assert [ax.get_title() for ax in figure.axes] == [
        "TOVA against the full model, mythologic", "Window+4 against the full model, mythologic",
        "TOVA against the full model, x: RANDOM WEIGHTS",
    ]  # fmt: skip
    assert [text.get_text() for text in figure.axes[1].texts] == ["none judged"]


def test_two_judges_do_not_share_a_bar():
    with pytest.raises(UsageError, match=r"judged several times \(cells other, tova-256\)"):
        draw("judged", tidy(judged(), judged(cell="other")))
    with pytest.raises(UsageError, match=r"task.judge=endpoint"):
        draw("judged", tidy([]))
    with pytest.raises(UsageError, match=r"lacks .*metric"):
        draw("judged", pd.DataFrame({"cell": ["x"]}))
