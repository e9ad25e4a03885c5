"""Sampled stories: the sampler is exact and knows no batch; scores, pairs, resuming, the whole way; the figure."""

import json
import math
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BEGINNING, TINY_MODEL, Letters, job, tiny
from matplotlib.colors import to_hex
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

import msrnn_bench as mb
from msrnn_bench.cli.main import main
from msrnn_bench.errors import UsageError
from msrnn_bench.figures import draw, style
from msrnn_bench.models.sources import Loaded, LocalModel
from msrnn_bench.results.summary import SUMMARY_TYPES
from msrnn_bench.runs.compose import compose_one
from msrnn_bench.tasks import stories
from msrnn_bench.tasks.stories import Stories, written_loss
from msrnn_bench.tasks.writing.answers import Asked, Writer
from msrnn_bench.tasks.writing.sampling import Sampler, gumbel, log_probabilities, nucleus

# --- sampling


def sampled(logits: torch.Tensor, rows: range, step: int, **settings: Any) -> np.ndarray:
    sampler = Sampler(seed=5, numbers=rows, prompt=3, **settings)
    ids = torch.zeros(len(rows), 3 + step, dtype=torch.long)
    return sampler(ids, logits.expand(len(rows), -1)).argmax(-1).numpy()


def chi_square(found: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * found.sum()
    return float(((found - expected) ** 2 / expected).sum())


# The 0.9999 quantiles of chi square with 5, 3 and 35 degrees of freedom; seeds are fixed, so a pass is a pass for ever.
LIMIT = {5: 25.7, 3: 21.1, 35: 75.0}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies_are_the_softmax(temperature: float):
    logits = torch.tensor([2.0, 0.0, 1.0, -2.0, 1.5, 0.3])
    wanted = (logits.double() / temperature).softmax(-1).numpy()
    for step in (0, 7):
        found = np.bincount(sampled(logits, range(4000), step, temperature=temperature), minlength=6)
        assert chi_square(found, wanted) < LIMIT[5]
        assert chi_square(found, np.roll(wanted, 1)) > 10 * LIMIT[5]  # such a sample would tell another distribution


def test_steps_are_independent():
    logits = torch.tensor([0.5, 0.0, 1.0, -0.5, 0.7, 0.3])
    wanted = logits.double().softmax(-1).numpy()
    one, two = (sampled(logits, range(6000), step) for step in (1, 2))
    pairs = np.bincount(6 * one + two, minlength=36)
    assert chi_square(pairs, np.outer(wanted, wanted).ravel()) < LIMIT[35]
    rows = sampled(logits, range(6001), 1)
    pairs = np.bincount(6 * rows[1:] + rows[:-1], minlength=36)
    assert chi_square(pairs, np.outer(wanted, wanted).ravel()) < LIMIT[35]


def test_top_p_samples_among_the_likely():
    logits = torch.tensor([2.0, 0.0, 1.0, -2.0, 1.5, 0.3])
    kept = nucleus(log_probabilities(logits, 1.0), 0.8)
    assert torch.isinf(kept).tolist() == [False, True, False, True, False, True]  # 0.42, 0.26, 0.16 reach 0.8 together
    wanted = kept.softmax(-1).numpy()
    found = np.bincount(sampled(logits, range(6000), 0, top_p=0.8), minlength=6)
    assert found[wanted == 0].sum() == 0 and chi_square(found[wanted > 0], wanted[wanted > 0]) < LIMIT[3]
    assert (sampled(logits, range(50), 0, top_p=1e-9) == 0).all()
    assert torch.equal(nucleus(kept, 1.0), kept)


def test_noise_is_a_function_of_seed_story_and_step():
    same = gumbel(1, 2, 3, 1000)
    assert torch.equal(same, gumbel(1, 2, 3, 1000)) and torch.equal(same[:10], gumbel(1, 2, 3, 10))
    for other in (gumbel(0, 2, 3, 1000), gumbel(1, 3, 3, 1000), gumbel(1, 2, 4, 1000), gumbel(2, 1, 3, 1000)):
        assert abs(np.corrcoef(same, other)[0, 1]) < 0.15
    many = torch.cat([gumbel(0, story, 0, 20_000) for story in range(5)])
    assert float(many.mean()) == pytest.approx(0.57722, abs=0.015)  # Euler's constant
    assert float(many.var()) == pytest.approx(math.pi**2 / 6, abs=0.05)


def write(policy: mb.Policy, size: int | None, numbers: list[int], new: int = 30, **changes: Any) -> list[list[int]]:
    ids = [1, 5, 9, 17, 33, 65, 3, 8]
    writer = Writer(Loaded(tiny("llama-gqa"), Letters(), {}), job(policy, size, **changes), new)
    sampler = Sampler(seed=0, numbers=numbers, prompt=len(ids), temperature=3.0)  # the tiny model is too sure of itself
    return [answer.tokens for answer in writer.sample(Asked(ids), [sampler], len(numbers))]


@pytest.mark.parametrize("prefill", ["stepwise", "oneshot"])
@pytest.mark.parametrize(("policy", "size"), [(mb.Full(), None), (mb.Tova(), 6), (mb.Window(first=4), 12), (mb.Random(), 12)])
def test_a_story_is_the_same_in_every_batch(policy: mb.Policy, size: int | None, prefill: str):
    together = write(policy, size, [0, 1, 2, 3, 4], prefill=prefill)
    assert len({tuple(story) for story in together}) == 5
    assert min(map(len, together)) < 30 == max(map(len, together))  # one row ends early, and is padded while others go on
    for number in (0, 1, 4):
        assert write(policy, size, [number], prefill=prefill) == [together[number]]
    assert write(policy, size, [4, 2], prefill=prefill) == [together[4], together[2]]


def test_pairs_part_only_by_the_policy():
    full = write(mb.Full(), None, [0, 1, 2])
    assert write(mb.Tova(), 64, [0, 1, 2]) == full
    bounded = write(mb.Tova(), 12, [0, 1, 2])
    assert bounded != full
    for one, other in zip(full, bounded, strict=True):
        assert one[:4] == other[:4]  # 8 tokens of prompt and 4 more before the first state leaves


def test_the_models_own_generation_settings_play_no_part(monkeypatch: pytest.MonkeyPatch):
    plain, config = write(mb.Tova(), 12, [0, 1]), tiny("llama-gqa").generation_config
    monkeypatch.setattr(config, "repetition_penalty", 3.0)
    assert write(mb.Tova(), 12, [0, 1]) == plain and tiny("llama-gqa").generation_config is config


def test_a_mark_of_beginning_ends_a_story():
    """As it does for a model that was trained to end a story by beginning the next."""
    loaded = LocalModel(path=str(TINY_MODEL)).load(dtype="float32", device="cpu", seed=0)
    begin = loaded.tokenizer.bos_token_id

    class AfterFive(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if input_ids.shape[1] == 6:
                scores[:, begin] = 1e9
            return scores

    (answer,) = Writer(loaded, job(mb.Full(), None), 20).sample(Asked([begin]), [AfterFive()], 1)
    assert answer.ended and len(answer.tokens) == 6 and answer.tokens[-1] == begin and "<s>" not in answer.text


def test_what_was_written_is_scored_by_the_full_model(monkeypatch: pytest.MonkeyPatch):
    model, ids, tokens = tiny("llama-gqa"), [1, 5, 9, 17], [20, 21, 2, 90, 4, 4, 7]
    with torch.no_grad():
        logits = model(torch.tensor([ids + tokens])).logits[0, 3:-1]
    wanted = float(torch.nn.functional.cross_entropy(logits, torch.tensor(tokens), reduction="sum"))
    for piece in (512, 3, 1):
        monkeypatch.setattr(stories, "PIECE", piece)
        assert written_loss(model, ids, tokens, "scan") == pytest.approx(wanted, rel=1e-12)


# --- the task


@cache
def shipped() -> dict[str, Any]:
    return dict(compose_one(["task=stories"]).task)


def task(**changes: Any) -> Stories:
    given = {**shipped(), **changes}
    given.pop("_target_")
    return Stories(**given)


BAD = {
    "stories": 0, "new_tokens": 1.5, "batch": -1, "temperature": 0, "top_p": 1.2, "judge": "me", "judge_timeout": "soon",
    "prompt": "{document}", "judge_prompt": "{first}", "judge_temperature": -1,
}  # fmt: skip


@pytest.mark.parametrize("field", BAD)
def test_settings_out_of_range_are_named(field: str):
    with pytest.raises(UsageError, match=rf"task\.{field}"):
        task(**{field: BAD[field]})


def test_identity_is_what_can_change_a_number(tmp_path: Path):
    plain = task().settings()
    assert json.loads(json.dumps(plain)) == plain
    assert task(batch=3, judge_prompt="{first}{second}", judge_model="x").settings() == plain  # nobody judges
    for change in ({"stories": 9}, {"new_tokens": 9}, {"temperature": 0.5}, {"top_p": 0.5}, {"chat": True}, {"prompt": "x"}):
        assert task(**change).settings() != plain
    judged = task(judge="endpoint", judge_model="one").settings()
    assert judged != plain and task(judge="endpoint", judge_model="one", judge_timeout=60, batch=2).settings() == judged
    for change in (
        {"judge_model": "two"},
        {"judge_prompt": "{first}{second}"},
        {"judge_temperature": None},
        {"judge_timeout": 1},
    ):
        assert task(**{"judge": "endpoint", "judge_model": "one", **change}).settings() != judged
    folder = TINY_MODEL
    (tmp_path / "link").symlink_to(folder)
    local = task(judge="local", judge_path=str(folder)).settings()
    assert local == task(judge="local", judge_path=str(tmp_path / "link")).settings() and str(folder) not in json.dumps(local)
    assert local != task(judge="local").settings() != plain


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


K = 16  # a few tokens more than the prompt has, so that every story soon feels it


def run(*overrides: str, folder: str = "results") -> int:
    """Six stories of the small model, in two batches."""
    given = [
        "run", "task=stories", f"task.prompt='{BEGINNING}'", "task.stories=6", "task.new_tokens=64", "task.batch=4",
        "task.judge_prompt='{first} | {second} |'", "model=local", f"model.path={TINY_MODEL}", "context=512",
        f"cache={K}", f"results_dir={folder}",
    ]  # fmt: skip
    return main([*given, *overrides])


def journals(folder: Path = Path("results")) -> dict[str, dict[str, dict[str, Any]]]:
    """Policy -> key -> record of every cell of the folder."""
    found = {}
    for path in (folder / "cells").glob("*.jsonl"):
        policy = pd.read_csv(path.with_suffix(".csv"))["policy"].iloc[0] if path.with_suffix(".csv").exists() else "unfinished"
        found[policy] = {line["key"]: line for line in map(json.loads, path.read_text().splitlines())}
    return found


def table(folder: Path = Path("results")) -> pd.DataFrame:
    parts = [pd.read_csv(path, dtype={"document": str}) for path in (folder / "cells").glob("*.csv")]
    return (
        pd.concat(parts).drop(columns=["seconds", "tokens_per_second"]).set_index(["policy", "metric", "document"]).sort_index()
    )


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Equal, but for the rounding of sums over other batches."""
    pd.testing.assert_frame_equal(one, other, check_dtype=False, check_exact=False, rtol=1e-5)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """with/ holds the full model's cell and then tova's, alone/ tova's without it; both judged."""
    folder = tmp_path_factory.mktemp("stories")
    for name, policies in (("with", ("full", "tova")), ("alone", ("tova",))):
        for policy in policies:
            assert run(f"policy={policy}", "task.judge=local", folder=str(folder / name)) == 0
    return folder


def begin(measured: Path, keep: str) -> None:
    """results/ as a killed run of tova leaves it: a journal of those records whose keys begin so."""
    (journal,) = (measured / "alone/cells").glob("*.jsonl")
    Path("results/cells").mkdir(parents=True)
    lines = [line for line in journal.read_text().splitlines(keepends=True) if json.loads(line)["key"].startswith(tuple(keep))]
    Path("results/cells", journal.name).write_text("".join(lines))


def plain_loss(tokens: list[int]) -> float:
    """Of these tokens behind the prompt, in one plain pass of the model."""
    ids = [*AutoTokenizer.from_pretrained(TINY_MODEL)(BEGINNING)["input_ids"], *tokens]
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -len(tokens) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(tokens), reduction="sum"))


def test_the_whole_way(measured: Path, here: Path):
    shutil.copytree(measured / "with", "results")
    assert main(["collect"]) == 0
    records = journals()
    keys = [f"{n:04d}" for n in range(6)]
    assert list(records["full"]) == keys and list(records["tova"]) == [*keys, *(f"pair/{key}" for key in keys)]
    rows, parted, prompt = table(), 0, len(AutoTokenizer.from_pretrained(TINY_MODEL)(BEGINNING)["input_ids"])
    assert 4 < prompt < K
    assert set(rows.index.get_level_values("metric")) == {"length", "distinct", "ended", "nll", "win", "tie", "loss"}
    assert rows["template"].eq("plain").all() and rows["bos"].all() and rows["bucket_start"].eq(prompt).all()
    for key in keys:
        tokens = records["tova"][key]["answer"]["tokens"]
        own = rows.loc["tova"].xs(key, level="document")
        assert own.loc["length", "total"] == len(tokens) and own.loc["length", "count"] == 1
        assert own.loc["distinct", ["total", "count"]].tolist() == [len(set(tokens)), len(tokens)]
        assert own.loc["nll", "count"] == len(tokens) and own.loc["nll", "total"] > 0
        assert own.loc["ended", "total"] == (len(tokens) < 64 or tokens[-1] in (1, 2))
        assert own["evictions"].eq(prompt + len(tokens) - 1 - K).all() and own["max_states"].eq(K).all()
        assert own.loc["nll", "total"] == pytest.approx(plain_loss(tokens), rel=1e-4)
        pair = records["tova"][f"pair/{key}"]
        if records["full"][key]["text"] == records["tova"][key]["text"]:  # so short that k did not matter
            assert pair["status"] == "identical" and own.loc[["win", "tie", "loss"], "total"].isna().all()
        else:
            parted += 1
            assert pair["status"] == "ok" and len(pair["verdicts"]) == 2
            assert own.loc[["win", "tie", "loss"], "total"].sum() == 1 and own.loc[pair["outcome"], "total"] == 1
        assert (
            records["full"][key]["answer"]["tokens"][: K - prompt] == tokens[: K - prompt]
        )  # a pair parts when the first state leaves
    assert parted >= 3
    summary = pd.read_csv("results/summary.csv").set_index(["policy", "metric"])
    assert summary.loc[("tova", "length"), "topline"] == summary.loc[("full", "length"), "value"]
    for policy in ("full", "tova"):
        written = [record["answer"]["tokens"] for key, record in records[policy].items() if "/" not in key]
        wanted = math.exp(sum(map(plain_loss, written)) / sum(map(len, written)))
        assert summary.loc[(policy, "nll"), "value"] == pytest.approx(wanted, rel=1e-4) and wanted > 1
    assert main(["plot", "figure=stories"]) == 0 and main(["plot", "figure=judged"]) == 0
    assert Path("results/stories.png").stat().st_size > 10_000 and Path("results/judged.pdf").is_file()


def test_without_a_full_cell_the_pairs_are_the_same(measured: Path):
    with_full, alone = journals(measured / "with"), journals(measured / "alone")
    for number in range(6):
        own, other = alone["tova"][f"full/{number:04d}"], with_full["full"][f"{number:04d}"]
        assert own["text"] == other["text"] and own["answer"]["tokens"] == other["answer"]["tokens"]
        assert alone["tova"][f"pair/{number:04d}"] == with_full["tova"][f"pair/{number:04d}"]
    same(table(measured / "with").loc[["tova"]], table(measured / "alone"))


def test_identical_stories_are_dropped(here: Path):
    assert run("policy=tova", "cache=256", "task.judge=local", "task.stories=2", "task.new_tokens=8") == 0
    rows = table().loc["tova"].loc[["win", "tie", "loss"]]
    assert rows["status"].eq("identical").all() and rows["total"].isna().all() and rows["count"].eq(0).all()
    assert {record["status"] for key, record in journals()["tova"].items() if key.startswith("pair/")} == {"identical"}


@pytest.mark.parametrize("at", ["writing", "judging"])
def test_a_killed_run_goes_on(measured: Path, here: Path, monkeypatch: pytest.MonkeyPatch, at: str):
    begin(measured, keep=["full/"] if at == "writing" else ["0", "full/"])
    honest, calls = {"writing": Writer.sample, "judging": stories.compare}[at], []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("the power failed")
        return honest(*args, **kwargs)

    monkeypatch.setattr(*((Writer, "sample") if at == "writing" else (stories, "compare")), dying)
    assert run("policy=tova", "task.judge=local") == 1
    (left,) = journals().values()
    new = [key for key in left if not key.startswith("full/")]
    assert new == ([f"{n:04d}" for n in range(4)] if at == "writing" else [*(f"{n:04d}" for n in range(6)), "pair/0000"])
    assert run("policy=tova", "task.judge=local") == 0
    assert len(calls) == (2 + 1 if at == "writing" else 2 + 5)  # what was done is not done again
    same(table(), table(measured / "alone"))
    for key, record in journals()["tova"].items():
        calm = journals(measured / "alone")["tova"][key]
        assert record.get("text") == calm.get("text") and record.get("outcome") == calm.get("outcome")


def test_what_was_unjudged_is_asked_again(
    measured: Path, here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    begin(measured, keep=["0", "full/"])
    silent = {"status": "unjudged", "outcome": None, "verdicts": [], "reason": "timed out"}
    honest, calls = stories.compare, []

    def flaky(*args: Any, **kwargs: Any) -> dict[str, Any]:
        calls.append(args)
        if len(calls) == 6:
            raise RuntimeError("the power failed")
        return silent if len(calls) == 2 else honest(*args, **kwargs)

    monkeypatch.setattr(stories, "compare", flaky)
    assert run("policy=tova", "task.judge=local") == 1
    assert run("policy=tova", "task.judge=local") == 0
    assert len(calls) == 6 + 2 and not caplog.messages
    same(table(), table(measured / "alone"))


def test_what_nobody_judged_is_missing(
    measured: Path, here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    begin(measured, keep=["0", "full/"])
    silent = {"status": "unjudged", "outcome": None, "verdicts": [], "reason": "timed out"}
    monkeypatch.setattr(stories, "compare", lambda *_, **__: silent)
    assert run("policy=tova", "task.judge=local") == 0
    rows = table().loc["tova"].loc[["win", "tie", "loss"]]
    assert rows["status"].eq("unjudged").all() and rows["total"].isna().all() and rows["count"].eq(0).all()
    assert caplog.messages == ["6 of 6 pairs are unjudged; of the first, the judge timed out"]


MISTAKES = {
    "policy=baseline": "policy=baseline shortens a document",
    "task.new_tokens=512": "task.new_tokens=512 leaves no room",
    "task.new_tokens=508": "more than the 4 there is room for",
    "task.chat=true": "no chat template",
    "task.judge=endpoint": "task.judge_model=NAME",
    "task.judge=endpoint task.judge_model=m": "MSRNN_JUDGE_URL is not set",
    "task.judge=local task.judge_path=nowhere": "task.judge_path=nowhere is no model folder",
    "task.prompt=": "task.prompt=.* must be a text",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_write_nothing(
    mistake: str, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MSRNN_JUDGE_URL", raising=False)
    assert run("policy=tova", *mistake.split()) == 2
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("msrnn-bench: ")]
    assert len(lines) == 1 and "Traceback" not in said and re.search(MISTAKES[mistake], lines[0]), said
    assert not list(Path("results").rglob("*.csv")) and not list(Path("results").rglob("*.json*"))


# --- the figure


VALUES = {
    "length": {"full": [700], "window4": [820, 760, 710], "tova": [780, 730, 705]},
    "distinct": {"full": [0.43], "window4": [0.31, 0.38, 0.42], "tova": [0.35, 0.40, 0.43]},
    "nll": {"full": [7.1], "window4": [14.3, 8.9, 7.3], "tova": [12.1, 8.1, 7.2]},
}


def summary(**changes: Any) -> pd.DataFrame:
    lines = []
    for metric, policies in VALUES.items():
        for policy, values in policies.items():
            for size, value in zip([None] if policy == "full" else [64, 256, 512], values, strict=True):
                lines.append({
                    "task": "stories", "dataset": "none", "model": "smollm2", "weights": "pretrained", "policy": policy,
                    "memory": 0.0, "first": 0, "per": "layer", "cache": size, "context": 2048, "seed": 0, "bos": False,
                    "dtype": "bfloat16", "engine": "scan", "prefill": "stepwise", "positions": "original", "template": "chat",
                    "metric": metric, "documents": 100, "count": 100, "value": value, "low": 0.9 * value, "high": 1.2 * value,
                    "status": "ok", "cell": f"{policy}-{size}", **changes,
                })  # fmt: skip
    return pd.DataFrame(lines, columns=list(SUMMARY_TYPES)).astype(SUMMARY_TYPES)


def test_three_panels_with_bars_and_the_full_model_as_a_line():
    figure = draw("stories", summary(), note="A note.")
    assert [ax.get_ylabel() for ax in figure.axes] == ["Tokens per story", "Distinct tokens / tokens", "Perplexity"]
    for ax, policies in zip(figure.axes, VALUES.values(), strict=True):
        (line,) = (artist for artist in ax.lines if artist.get_linestyle() == "--")
        assert set(line.get_ydata()) == set(policies["full"])
        for policy in ("tova", "window4"):
            (bars,) = (c for c in ax.containers if to_hex(c.lines[0].get_color()) == style.LOOKS[policy].color.lower())
            assert list(bars.lines[0].get_ydata()) == policies[policy]
            assert np.log2(list(map(float, bars.lines[0].get_xdata()))) == pytest.approx(np.log2([64, 256, 512]), abs=0.2)
            ends = np.array(bars.lines[2][0].get_segments())[:, :, 1]
            np.testing.assert_allclose(ends, [(0.9 * value, 1.2 * value) for value in policies[policy]])
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["64", "256", "512"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["TOVA", "Window+4", "Topline (full context)"]
    (caption,) = (text.get_text().replace("\n", " ") for text in figure.texts)
    assert "100 sampled stories per point, chat prompt, bfloat16" in caption and caption.endswith("A note.")


def test_models_have_rows_of_their_own_and_other_tasks_are_left_out():
    other = summary(model="stories260k", weights="random", template="plain", context=512)
    failed = summary().assign(value=math.nan, status="failed").iloc[:1]
    figure = draw("stories", pd.concat([summary(), other, summary(task="perplexity", model="gpt2"), failed]))
    assert len(figure.axes) == 6
    assert [part.get_suptitle() for part in figure.subfigs] == ["smollm2", "stories260k: RANDOM WEIGHTS"]
    (caption,) = (text.get_text().replace("\n", " ") for text in figure.texts)
    assert "1 cell failed and is missing." in caption


def test_without_stories_it_says_how_to_get_them():
    for given in (summary(task="perplexity"), summary(policy="full")):
        with pytest.raises(UsageError, match=r"task=stories policy=tova"):
            draw("stories", given)
    with pytest.raises(UsageError, match="lacks task"):
        draw("stories", pd.DataFrame({"policy": ["tova"]}))
