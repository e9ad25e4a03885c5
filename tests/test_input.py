"""What a user types: every line ends prepared, or with one line that says why. Lines are drawn by hypothesis, seeded.

A few hundred here; 3,000, and 100 of those as real commands, with `-m slow`.
"""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from functools import cache

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from msrnn_bench.cli.main import main
from msrnn_bench.runs import grid
from msrnn_bench.runs.compose import GROUPS, choices, compose_one
from msrnn_bench.runs.values import Settings

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
    *words(
        "no off ??? ${seed} ${cache} ${nothing} ${hydra:job.num} ${hydra:runtime.cwd} ${oc.env:NOPE} ${oc.env:HOME} ${oc.decode:[}"
    ),
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
    every = [
        f"{group}.{key}" for group in GROUPS[:-1] for name in choices(group) for key in compose_one([f"{group}={name}"])[group]
    ]
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

    monkeypatch.setattr(grid, "_measure", ready)
    monkeypatch.setattr(grid, "_spawn", ready)
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


def test_every_line_ends_prepared_or_with_one_line(here, capfd):
    all_end_well(lines(300), capfd)


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
        said = "\n".join(x for x in done.stderr.splitlines() if done.returncode or x.startswith("msrnn-bench: "))
        ends[done.returncode] += 1
        if fault := verdict(done.returncode, said):
            wrong.append((typed(line), fault[:600]))
    with capfd.disabled():
        print(f"\n100 real commands: {dict(ends)}")
    assert not wrong, wrong
