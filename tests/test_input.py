"""What a user types: every line ends prepared, or with one line that says why. Lines are drawn by hypothesis, seeded.

Two hundred here; 3,000, and 100 of those as real commands, with `-m slow`.
"""

import inspect
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from functools import cache

import pandas as pd
import pytest
from conftest import ROOT, choice
from hydra.utils import get_object
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from msrnn_bench import H2O, Eviction, Random, Tova, UsageError, Window
from msrnn_bench.cli.main import main
from msrnn_bench.datasets.texts import Text
from msrnn_bench.errors import _hints, check
from msrnn_bench.models.sources import LocalModel
from msrnn_bench.runs import grid
from msrnn_bench.runs.build import OURS
from msrnn_bench.runs.compose import GROUPS, choices, compose_grid, compose_one, config_dir
from msrnn_bench.runs.compose import settings as all_settings
from msrnn_bench.runs.overrides import understood
from msrnn_bench.runs.values import Settings
from msrnn_bench.tasks.perplexity import Perplexity

TINY = ROOT / "tests/tiny/model"
BASE = {
    "model": "local", "model.path": str(TINY), "dataset": "text", "dataset.path": "t.txt", "context": "64", "tokens": "64",
    "documents": "1", "cache": "8",
}  # fmt: skip
TOP = list(Settings.__annotations__)


def words(text: str) -> list[str]:
    return text.split()


NUMBERS = [
    *words("0 1 -1 2 16 64 0.5 .5 5. 1.0 1e3 1e30 1e400 10**9 5_0 1_0.5 0x10 007 +5 nan NaN -inf 2147483648 4294967296 1e-9 ٣ ½"),
    *("1,5", "1 000", "16k", "1" * 31, "9" * 5000),
]
ODD = [
    *words(
        "a b é 日本 ~ ~/m a(1) ( ) x=y == a,b , [a] [ ] {a:1} { } [[[]]] ' \" '' 'a 'a,b' '\\n' \\n \\\\n a\\ null None true TRUE"
    ),
    *words("no off ??? ${seed} ${cache} ${nothing} ${hydra:job.num} ${hydra:runtime.cwd} ${oc.env:NOPE} ${oc.env:HOME}"),
    *words("${ $x a'b \x7f \udc80 # %s a;b * ** . .. - -- @ : a:b auto cpu cuda:9 meta layer head local random t.txt"),
    *words("[t.txt] t.txt,t.txt missing.txt [1,[2,{c:d}]] [64,128] [1e3,x] [0,0.5]"),
    *(
        "",
        " ",
        "a b",
        "\t",
        "a\nb",
        "\u2028",
        "{a: {b: [1, null]}}",
        "{document} {question}",
        "'{document} {question}'",
        "a" * 3000,
    ),
]
CALLS = words("""
    range(1,4) range(1,1000000000000) range(0,1,0) range(3) range(a) choice(8,16) choice(a) choice() glob(*) glob(zz*)
    glob([t*,h*]) glob(*,exclude=t*) interval(0,1) sort(3,1,2) sort(range(1,9),reverse=true) shuffle(range(1,5))
    shuffle(range(1,1000000000000)) shuffle(a,b) tag(a,choice(1,2)) int(3.5) int(a) float(x) str(5) bool(7)
    json_str({a:1}) extend_list(1) nope(1) choice(choice(1,2))
""")
TARGETS = words("""
    msrnn_bench.policies.Window msrnn_bench.policies.Policy msrnn_bench.policies.Rule msrnn_bench.nothing nowhere.P os.getcwd
    my_policy.Loudest my_policy.Nothing msrnn_bench.tasks.squality.Squality a..b math.pi builtins.dict
""")
STRANGE = words("""
    cash policy.frist hydra.sweeper.params.cache hydra.x hydra/launcher model.architecture.x policy.first.x seed.x _target_
    policy._partial_ task._args_ policy@x defaults é model/x
""")
GOOD = [
    *words(
        "cache=1,8,16 cache=range(4,9) policy=tova,h2o policy=window4 policy=random policy=glob(tova*) seed=0,1 policy.first=1"
    ),
    *words(
        "dtype=bfloat16 engine=recurrence results_dir=~/r results_dir=2024 task.chunk=8 task.buckets=[16,32] task.agreement=true"
    ),
    *words("dataset.bos=never dataset.start=0.25 dataset.skip=3 dataset.separator=\\n dataset.name='x' force=true tokens=null"),
    *words("policy=eviction policy.memory=0.5,1 policy.recent=null policy.per=head workers=1 keep_tokens=true documents=null"),
    *words("policy._target_=my_policy.Loudest policy.fade=0.25 model.name=m model.weights=random context=32 device=cpu"),
    *("dataset.path=a (1) b=c.txt", "results_dir=é ß", "task=stories dataset=none task.new_tokens=8 task.stories=2"),
]


@cache
def nested() -> tuple[list[str], list[str]]:
    """The keys of the YAMLs that the lines begin from, and those of all others."""
    mine = [f"{group}.{key}" for group in GROUPS[:-1] for key in compose_one(["model=local", "dataset=text"])[group]]
    every = [f"{group}.{key}" for group in GROUPS[:-1] for name in choices(group) for key in choice(group, name)]
    return mine, sorted({*every} - {*mine})


def values() -> st.SearchStrategy[str]:
    letters = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
    plain = st.one_of(
        st.sampled_from(NUMBERS), st.sampled_from(ODD), st.sampled_from(CALLS), st.text(letters, max_size=8),
        st.integers(-10, 10**6).map(str), st.floats().map(str),
    )  # fmt: skip
    some = st.lists(plain, min_size=1, max_size=3)
    return st.one_of(
        plain, plain, plain, some.map(",".join), some.map(lambda v: f"[{','.join(v)}]"), plain.map(lambda v: f"'{v}'"),
        plain.map(lambda v: f"{{a:{v}}}"), some.map(lambda v: f"choice({','.join(v)})"),
    )  # fmt: skip


def overrides() -> st.SearchStrategy[str]:
    names = [name for group in GROUPS for name in choices(group) if name != "smollm2"]  # its first use converts a file
    chosen = st.one_of(st.sampled_from(names), st.sampled_from(ODD + NUMBERS + CALLS), st.sampled_from(["tova,h2o", "full,tova"]))
    mine, others = nested()
    keys = st.one_of(
        st.sampled_from(TOP), st.sampled_from(mine), st.sampled_from(mine), st.sampled_from(others), st.sampled_from(STRANGE)
    )
    prefix = st.sampled_from(["", "", "", "", "", "+", "++", "~"])
    return st.one_of(
        st.builds(lambda p, k, v: f"{p}{k}={v}", prefix, keys, values()),
        st.builds(lambda p, k, v: f"{p}{k}={v}", prefix, keys, values()),
        st.builds(lambda p, g, v: f"{p}{g}={v}", prefix, st.sampled_from(GROUPS), chosen),
        st.builds(lambda g, v: f"{g}._target_={v}", st.sampled_from(GROUPS), st.sampled_from(TARGETS)),
        *[st.sampled_from(GOOD)] * 5,
        st.sampled_from(["~task", "~cache", "~policy.first", "~nothing", "+=10**9", "=", "cache", "~", "+", "++", "cache:8"]),
    )  # fmt: skip


@cache
def lines(count: int) -> list[tuple[str, ...]]:
    """The first so many lines: flags and overrides, the same ones always."""
    found: list[tuple[str, ...]] = []
    with_flag = st.sampled_from([(), (), ("-m",)])

    @settings(max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(
        with_flag,
        st.one_of(st.lists(overrides(), min_size=1, max_size=3), st.lists(st.sampled_from(GOOD), min_size=1, max_size=3)),
    )
    def draw(flag, some):
        found.append((*flag, *some))

    draw()
    return found[:count]


def typed(line: tuple[str, ...]) -> list[str]:
    """The command that the line is, on the tiny model and a small text where it does not say otherwise."""
    named = {o.lstrip("+~").partition("=")[0] for o in line}
    flags = [o for o in line if o.startswith("-")]
    groups = {group for group in ("model", "dataset") if group in named}
    kept = [f"{k}={v}" for k, v in BASE.items() if k not in named and k.partition(".")[0] not in groups]
    given = [o for o in line if not o.startswith("-")]
    return ["run", *flags, *kept, *(part for o in given for part in (o.split() if o.startswith("task=stories") else [o]))]


class ReadyError(BaseException):
    """Everything was prepared; here the first cell would run."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, which is home too, and no cell that runs."""
    folder = tmp_path / "home/here"
    folder.mkdir(parents=True)
    (folder / "t.txt").write_text("The cat sat on the mat, and nobody minded.\n" * 400)
    (folder / "a (1) b=c.txt").write_text("A dog ran by.\n" * 400)
    (folder / "my_policy.py").write_text((ROOT / "docs/examples/my_policy.py").read_text())
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("MSRNN_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])

    def ready(cells, *_, **__):
        raise ReadyError

    monkeypatch.setattr(grid, "_run_one", ready)
    monkeypatch.setattr(grid, "announce", ready)
    return folder


def verdict(code: int | str | None, said: str) -> str | None:
    """What is wrong with how a command ended, None where nothing is."""
    errors = [line for line in said.splitlines() if line.startswith("msrnn-bench: ")]
    others = [line for line in said.splitlines() if line.strip() and not line.startswith("msrnn-bench: ")]
    if code in (0, "prepared"):
        return None
    if code not in (1, 2) or len(errors) != 1 or others or "failed (" in errors[0] or len(errors[0]) < 30:
        return f"code {code}: {said}"
    return None


def end(line: tuple[str, ...], capfd) -> tuple[int | str | None, str, float]:
    capfd.readouterr()
    begin = time.process_time()
    try:
        code: int | str | None = main(typed(line))
    except ReadyError:
        code = "prepared"
    except SystemExit as error:
        code = f"exit {error.code}"
    except Exception as error:
        code = f"bare {type(error).__name__}: {error}"
    return code, capfd.readouterr().err, time.process_time() - begin


def all_end_well(drawn: list[tuple[str, ...]], capfd) -> None:
    for warm in (("cache=8",), ("task=stories", "dataset=none"), ("task=lm_eval",)):  # imports are no line's own time
        end(warm, capfd)
    ends, wrong, longest = Counter(), [], (0.0, ())
    for line in drawn:
        code, said, seconds = end(line, capfd)
        ends[code] += 1
        longest = max(longest, (seconds, line))
        fault = verdict(code, said) or (f"{seconds:.1f} s" if seconds > 5 else None)
        if fault:
            wrong.append((typed(line), fault[:600]))
    with capfd.disabled():
        print(f"\n{len(drawn)} lines: {dict(ends)}; the slowest {longest[0]:.2f} s: {' '.join(longest[1])[:100]!r}")
        for command, fault in wrong[:40]:
            print(" WRONG", command[1:], "\n   ", fault)
    assert not wrong, f"{len(wrong)} of {len(drawn)}"


# What was typed, and what is said to it; None: it is prepared.
SEEN = {
    "policy.memory=true": "policy.memory=true must be a number from 0 to 1", "dataset.skip=true": "dataset.skip=true must be",
    "task.agreement=no": "task.agreement=no must be true or false",
    f"seed={10**30}": "must be a whole number from 0 to 4294967295",
    f"cache={10**30}": "must be a whole number from 1 to 2147483647", "task=NaN": "unknown task 'NaN'",
    "~task": "task was taken away",
    "results_dir=20261124": None, "results_dir={a:1}": "must be one path", "policy.seed=abc": "unknown setting 'policy.seed'",
    "policy.first=true": "policy.first=true must be", "device=null": "device=null must be a text",
    "documents=1e30": "documents=1e+30",
    "+=10**9": "cannot read the override", "hydra.sweeper.params.cache=3": "Hydra's own",
    "seed=${hydra:job.num}": "cannot be resolved",
    "cache=5_0": "write 50", "+cash.x=3": "unknown setting 'cash' (did you mean 'cache'?)", "++a.b=1": "unknown setting 'a'",
    "++policy.first.x=3": "policy.first={x:3} must be", "+policy.frist=3": "(did you mean 'first'?)",
    "task=null": "chosen by one name",
    "results_dir=~/m": None, "results_dir=a b (é)=1": None, "dataset.path=a (1) b=c.txt": None, "cache=???": "left open",
    "dataset.separator=\\n\\n": None, "task.buckets=64": "write task.buckets=[64]", "cache=8.0": "write cache=8",
    "dataset.name=2024": "write \"dataset.name='2024'\"", "policy.memory=nan": "from 0 to 1", "cache=8,16": "add -m",
    "+policy._partial_=true": "unknown setting 'policy._partial_'", "task._target_=msrnn_bench.policies.Full": "unknown setting",
    "policy=[tova,h2o]": "must be one name", "workers=0": "workers=0 must be", "experiment=null": None,
    "seed.x=3": "seed is a single value",
    "results_dir=~no_such_user/x": "is no path", f"dataset.path={'a' * 3000}": "is no path",
    f"model.path={'a' * 3000}": "is no path", "results_dir=~": None,
    "task.buckets=[\\n]": "written in quotes, ['\\n'", "model._convert_=none": "none of its settings",
    "documents=0.0": "documents=0.0 must be a whole number of 1 or more or null\n",
    "context=1": "context=1 must be", "\udc80=1": "no UTF-8 text",
}  # fmt: skip


@pytest.mark.parametrize("line", SEEN, ids=ascii)
def test_what_was_seen(line, here, capfd):
    code, said, _ = end((line,), capfd)
    assert verdict(code, said) is None, said
    assert (SEEN[line] is None and code == "prepared") or (SEEN[line] is not None and code == 2 and SEEN[line] in said), said


@pytest.mark.parametrize(
    "text", ["a,b.txt", "a[1].txt", "{a}.txt", "range(1,3)", "'a', it's", "a [b] $x, ü.txt", "a\\n,b", "choice(a)"]
)
@pytest.mark.parametrize("key", ["dataset.path", "results_dir", "dataset.name", "task.prompt"])
def test_the_command_that_is_shown_means_the_text(key, text, here, capfd, monkeypatch):
    """Pasted into a shell, it is the same command with that very text."""
    monkeypatch.setitem(BASE, "task", "retrieval") if key == "task.prompt" else None
    code, said, _ = end((f"{key}={text}",), capfd)
    assert code == 2 and "written msrnn-bench run" in said
    pasted = said.partition("written msrnn-bench ")[2].strip()
    received = subprocess.run(["bash", "-c", f"printf '%s\\0' {pasted}"], capture_output=True, text=True, check=True).stdout
    command, *args = received.split("\0")[:-1]
    assert command == "run"
    config = compose_one(understood(args, ["run"], sweeps=False))
    assert OmegaConf.select(config, key) == text


def test_several_paths_with_m(here, capfd):
    for several, wanted in (("~/a,~/é b", ["~/a", "~/é b"]), ("a,b", ["a", "b"])):
        points = compose_grid(understood([f"results_dir={several}"], ["run", "-m"], sweeps=True), experiment_grid=True)
        assert [config.results_dir for _, config in points] == wanted
    (here / "x,y").mkdir()
    code, said, _ = end(("-m", "results_dir=x,y"), capfd)
    assert code == 2 and "is a file, and read as several values" in said


def test_escapes_in_quotes(here):
    meant = {
        "'\\n\\n'": "\n\n",
        "'\\\\n'": "\\n",
        '"a\\tb"': "a\tb",
        "\\n": "\n",
        "'it\\'s'": "it's",
        "'\\d'": "\\d",
        "'a\\\\'": "a\\",
    }
    for typed_, text in meant.items():
        config = compose_one(understood([f"dataset.separator={typed_}", "dataset=text"], ["run"], sweeps=False))
        assert config.dataset.separator == text, typed_
    config = compose_one(understood(["task=squality", "task.stop=['\\n','Q:']"], ["run"], sweeps=False))
    assert list(config.task.stop) == ["\n", "Q:"]


def test_both_ways_agree(here, capfd):
    """`run --cfg job`, which Hydra itself answers, shows what `run` measures."""
    given = [
        "results_dir=~/é (1)",
        "dataset=text",
        "dataset.separator='\\n'",
        "policy._target_=my_policy.Loudest",
        "policy.fade=0.25",
    ]
    assert main(["run", "--cfg", "job", *given]) == 0
    shown = OmegaConf.create(capfd.readouterr().out)
    assert shown == compose_one(understood(given, ["run"], sweeps=False))
    assert shown.results_dir == "~/é (1)" and shown.policy.fade == 0.25
    assert main(["run", "--cfg", "job", "polcy=tova"]) == 2 and main(["run", "--nonsense"]) == 2


def test_whole_grids():
    """Of several experiments each its own, also under `run -m`."""
    one, other = (compose_grid([f"experiment={name}"], experiment_grid=True) for name in ("demo", "smoke"))
    assert min(len(one), len(other)) > 1 and len(one) != len(other)
    both = compose_grid(["experiment=demo,smoke"], experiment_grid=True)
    assert [c.results_dir for _, c in both] == [c.results_dir for _, c in [*one, *other]]
    assert {c.cache for _, c in compose_grid(["experiment=demo,smoke", "cache=7"], experiment_grid=True)} == {7}


def test_a_knob_of_ones_own_policy_is_swept(here, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(typed(("-m", "policy._target_=my_policy.Loudest", "policy.fade=0.1,0.9", "cache=16,24"))) == 0
    table = pd.read_csv("results/summary.csv")
    assert set(table["policy"]) == {"loudest (fade 0.1)", "loudest (fade 0.9)"} and len(table) == 4


def test_a_folder_of_results_is_expanded(here, capfd):
    (here / "r").mkdir()
    assert main(["collect", "results_dir=~/r"]) == main(["collect", f"results_dir={here}/r"])
    assert str(here / "r") in capfd.readouterr().err.splitlines()[0]


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("tokenizer.json", None, "model: its tokenizer gives '"), ("tokenizer.json", '{"a": 1}', "cannot be loaded"),
        ("tokenizer.json", "{", "cannot be loaded"), ("config.json", "{", "config.json"), ("config.json", "[]", "model"),
        ("config.json", '{"model_type": "llama", "hidden_size": "x"}', "model"),
        ("tokenizer_config.json", "[]", "cannot be loaded"),
        ("model.safetensors", "x", "model"),
    ],
)  # fmt: skip
def test_faults_of_a_models_files_are_one_line(file, change, says, here, monkeypatch, capfd):
    monkeypatch.undo()
    monkeypatch.chdir(here)
    shutil.copytree(TINY, "model")
    if change is None:  # every word is one that the model has no embedding for
        tokenizer = json.loads((here / "model" / file).read_text())
        highest = max(tokenizer["model"]["vocab"].values())
        tokenizer["added_tokens"] += [
            {"id": highest + 1, "content": "cat", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": False}
        ]  # fmt: skip
        change = json.dumps(tokenizer)
    (here / "model" / file).write_text(change)
    code, said, _ = end(
        ("model=local", "model.path=model", "dataset.path=t.txt", "dataset=text", "context=64", "tokens=64"), capfd
    )
    lines = [line for line in said.splitlines() if line.startswith("msrnn-bench: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in said and "failed (" not in said, said
    assert says in lines[0] and "model" in lines[0]


def test_all_of_conf_passes():
    """Every value of every YAML is what the annotation says, and no parameter is Any or without one."""
    files = [path for group in GROUPS[:-1] for path in sorted((config_dir() / group).rglob("*.yaml"))]
    assert len(files) > 50
    for path in files:
        group, name = (
            path.relative_to(config_dir()).parts[0],
            str(path.relative_to(config_dir() / path.relative_to(config_dir()).parts[0])),
        )
        plain = OmegaConf.to_container(choice(group, name.removesuffix(".yaml")), resolve=False)
        made = get_object(plain["_target_"])
        given = {k: v for k, v in plain.items() if k not in OURS and v != "${seed}"}
        check(made, given, group)
        hints = _hints(made)
        assert set(hints) == set(inspect.signature(made).parameters), made
        assert "typing.Any" not in str(hints), made
    assert {*TOP, *GROUPS} == {*all_settings()}
    check(Settings, {k: v for k, v in OmegaConf.to_container(compose_one([])).items() if k in TOP})


@pytest.mark.parametrize(("make", "says"), [
    (lambda: Tova(first="x"), "policy.first=x must be"), (lambda: Eviction(memory=float("nan")), "memory=nan must be"),
    (lambda: Window(first=-1), "first=-1"), (lambda: Random(seed=True), "seed=true"), (lambda: H2O(per="row"), "layer or head"),
    (lambda: Text(path="x", skip=10**30), "from 0 to 2147483647"), (lambda: Perplexity(buckets=64), "write task.buckets=[64]"),
    (lambda: LocalModel(path="x", architecture={"a": float("inf")}), "architecture"),
    (lambda: LocalModel(path=3), "model.path=3"),
])  # fmt: skip
def test_in_python_too(make, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        make()


def test_every_line_ends_prepared_or_with_one_line(here, capfd):
    all_end_well(lines(200), capfd)


@pytest.mark.slow
def test_three_thousand_lines(here, capfd):
    all_end_well(lines(3000), capfd)


@pytest.mark.slow
def test_a_hundred_of_them_as_real_commands(here, capfd):
    possible = [line for line in lines(3000) if all(o.isprintable() and "results_dir" not in o and len(o) < 2000 for o in line)]
    ends, wrong = Counter(), []
    for line in random.Random(20261125).sample(possible, 100):
        command = [sys.executable, "-m", "msrnn_bench.cli.main", *typed(line)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)})
        said = "\n".join(x for x in done.stderr.splitlines() if not re.search(r": (loading$|done\b|[\d,]+ of )", x))
        ends[done.returncode] += 1
        if fault := verdict(done.returncode, said):
            wrong.append((typed(line), fault[:600]))
    with capfd.disabled():
        print(f"\n100 real commands: {dict(ends)}")
    assert not wrong, wrong
