"""What happens to a sweep, on purpose: processes killed, exceptions, full disks, broken files, sleepers, wrong clocks.

    make test-faults            # or: python tests/faults.py [SCALE]    a share of the faults, 0.1 for a look

Sweeps of 24 cells of perplexity and of stories are disturbed while a cell is running, then run to their end. Of each the table
must equal the undisturbed one in all but time and memory, and no process may be left. Prints the faults by kind; exits 1 if
anything was lost, or a fault could not be had.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests/tiny"
TIMINGS = ["seconds", "tokens_per_second", "peak_bytes"]
GRID = ["run", "-m", "model=local", f"model.path={TINY / 'model'}", "policy=tova,h2o,random,window", "cache=8,12,16,20,24,32"]
KINDS = {
    "perplexity": ["dataset=text", "documents=4", "context=192", "tokens=768", "engine=recurrence"],  # of four texts
    "stories": ["task=stories", "task.prompt=Once", "task.stories=6", "task.new_tokens=96", "task.batch=1", "context=192"],
}  # fmt: skip
DEATHS = {
    (who, name): 8 if name in ("KILL", "TERM") else 7 for who in ("parent", "worker") for name in ("KILL", "TERM", "INT", "HUP")
}  # of processes, by signal
FAULTS = {
    "exception": 16, "full": 16, "readonly": 15, "truncated": 16, "edited": 15, "journal": 16, "two sweeps": 15, "heartbeat": 16,
    "clock": 15,
}  # fmt: skip
SOME = 50  # faults of a campaign
CELLS = 24
PATIENCE = 3.0  # seconds, in place of a minute


@dataclass
class Campaign:
    """One sweep and what is done to it."""

    folder: Path
    kind: str
    orders: list[str]
    chance: random.Random
    running: list[psutil.Popen] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    pairs: set[frozenset[frozenset[int]]] = field(default_factory=set)
    number: int = 0

    def __post_init__(self) -> None:
        self.faults = self.folder / "faults"
        self.faults.mkdir(parents=True)
        self.results = self.folder / "results"

    def start(self) -> None:
        """The sweep, in two processes; every one of them has the faults of tests/faulty at hand."""
        path = os.pathsep.join([str(ROOT / "tests/faulty"), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": path, "FAULTS": str(self.faults), "MSRNN_BENCH_PATIENCE": str(PATIENCE)}
        environment |= {"CLOCKS": "1", "OMP_NUM_THREADS": "1"}
        self.running.append(
            psutil.Popen(command(self.kind, self.results), env=environment, stdout=subprocess.DEVNULL, stderr=self.log())
        )

    def log(self):
        return (self.folder / "log").open("a")

    def leases(self) -> list[dict]:
        """The cells at work, by owners that are alive."""
        found = []
        for path in self.results.glob("cells/.*.lease"):
            with contextlib.suppress(OSError, ValueError):
                holder = json.loads(path.read_bytes())
                if psutil.pid_exists(holder["pid"]):
                    found.append({**holder, "cell": path.name[1:-6]})
        return found

    def run(self) -> None:
        todo, tries = deque(self.orders), Counter[str]()
        while todo:
            order = todo.popleft()
            if not self.disturb(order):  # later, then
                tries[order] += 1
                if tries[order] < 20:
                    todo.append(order)
        deadline = time.monotonic() + 300
        for process in self.running:
            process.terminate()
        while True:
            self.settle()
            done = subprocess.run(command(self.kind, self.results, retry=True), env={**os.environ, "PYTHONPATH": str(ROOT)},
                                  capture_output=True, text=True, check=False)  # fmt: skip
            if done.returncode == 0:
                return
            assert time.monotonic() < deadline, done.stdout + done.stderr

    def disturb(self, order: str) -> bool:
        """One fault, while a cell is running; False where it came too late."""
        if not self.at_work():
            return False
        happened = getattr(self, f"_{order.split()[0]}")(order)
        self.counted[order] += happened
        return happened

    def at_work(self) -> bool:
        """Until a cell is running, beginning anew where all are finished; then a moment more. Two sweeps at once, so that while
        one starts there is another to disturb."""
        deadline = time.monotonic() + 180
        while True:
            self.running = [process for process in self.running if process.poll() is None]
            if len(list(self.results.glob("cells/[!.]*.json"))) > CELLS - 6:
                self.refresh()
            while len(self.running) < 2:
                self.start()
            if self.leases():
                break
            if time.monotonic() > deadline:
                raise AssertionError((self.folder / "log").read_text()[-3000:])
            time.sleep(0.02)
        time.sleep(self.chance.uniform(0, 0.5))
        return bool(self.leases())

    def refresh(self) -> None:
        """Half of the finished and failed cells are taken away, for a disturbed sweep needs something to do."""
        for path in sorted(self.results.glob("cells/[!.]*.json"))[::2]:
            for suffix in (".json", ".csv", ".jsonl"):
                path.with_suffix(suffix).unlink(missing_ok=True)

    def settle(self) -> None:
        """Wait for what is running."""
        for process in self.running:
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(180)
            if process.poll() is None:
                raise AssertionError("a sweep does not come to its end:\n" + (self.folder / "log").read_text()[-3000:])
        self.running = []

    # --- the faults

    def _death(self, order: str) -> bool:
        _, who, name = order.split()
        number = getattr(signal, f"SIG{name}")
        at = {holder["pid"] for holder in self.leases()}
        parents = [process for process in self.running if process.poll() is None and at & {one.pid for one in process.children()}]
        if not parents:
            return False
        parent = self.chance.choice(parents)
        family = parent.children()
        if who == "parent":
            parent.send_signal(number)
            parent.wait(60)
            _, alive = psutil.wait_procs(family, timeout=5 if name == "KILL" else 20)
            assert not alive, f"workers outlive a parent that died by {name}"
            return True
        mine = [child for child in family if child.pid in at][:1]
        if not mine:
            return False
        mine[0].send_signal(number)
        _, alive = psutil.wait_procs(mine, timeout=30)
        assert not alive, f"a worker heeds no {name}"
        return True

    def _ordered(self, kind: str, seconds: float = 40) -> bool:
        """A fault inside a process: ordered, and waited for until one has it."""
        self.number += 1
        name = f"{kind}.{self.number}"
        (self.faults / name).touch()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if (self.faults / f"done-{name}").exists():
                return True
            if not any(process.poll() is None for process in self.running):
                break
            time.sleep(0.02)
        (self.faults / name).unlink(missing_ok=True)
        return (self.faults / f"done-{name}").exists()

    def _exception(self, order: str) -> bool:
        return self._ordered("exception")

    def _full(self, order: str) -> bool:
        return self._ordered("full")

    def _readonly(self, order: str) -> bool:
        return self._ordered("readonly")

    def _heartbeat(self, order: str) -> bool:
        return self._ordered("heartbeat")

    def _clock(self, order: str) -> bool:
        """An hour before or behind: every process is, of those that have a cell one more is counted."""
        seen = {holder["pid"] for holder in self.leases() if (self.faults / f"clock-{holder['pid']}").exists()}
        for pid in sorted(seen):
            (self.faults / f"clock-{pid}").unlink()
            return True
        for process in self.running:  # none that is new: let one come
            for child in process.children() if process.is_running() else []:
                child.send_signal(signal.SIGTERM)
                break
        time.sleep(1)
        return False

    def _some_file(self, pattern: str) -> Path | None:
        found = sorted(self.results.glob(pattern))
        return self.chance.choice(found) if found else None

    def _truncated(self, order: str) -> bool:
        path = self._some_file(self.chance.choice(["cells/[!.]*.csv", "cells/[!.]*.json"]))
        if path is None or not self.leases():
            time.sleep(1)
            return False
        with path.open("r+b") as file:
            file.truncate(self.chance.randrange(1, max(2, path.stat().st_size - 1)))
        return True

    def _edited(self, order: str) -> bool:
        path = self._some_file("cells/[!.]*.csv")
        if path is None or not self.leases():
            time.sleep(1)
            return False
        text = path.read_text()
        digits = [at for at, letter in enumerate(text) if letter.isdigit() and at > text.index("\n")]
        at = self.chance.choice(digits)
        path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
        return True

    def _journal(self, order: str) -> bool:
        at_work = [self.results / f"cells/{holder['cell']}.jsonl" for holder in self.leases()]
        for path in at_work:
            with contextlib.suppress(OSError, ValueError):
                size = path.stat().st_size
                with path.open("r+b") as file:
                    file.truncate(self.chance.randrange(max(1, size - 200), size))
                return True
        time.sleep(0.2)
        return False

    def _two(self, order: str) -> bool:
        """Both sweeps are at cells at one time, in processes that were not counted before."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any(process.poll() is not None for process in self.running):
            at = {holder["pid"] for holder in self.leases()}
            pairs = [frozenset(at & {child.pid for child in process.children()}) for process in self.running]
            if all(pairs) and frozenset(pairs) not in self.pairs:
                self.pairs.add(frozenset(pairs))
                return True
            time.sleep(0.02)
        return False


def command(kind: str, results: Path, retry: bool = False) -> list[str]:
    how = ["workers=2", *(["retry=failed"] if retry else [])]
    texts = [f"dataset.path={results.parents[1] / 'texts'}"] if kind == "perplexity" else []
    return [sys.executable, "-m", "msrnn_bench.cli.main", *GRID, *KINDS[kind], *texts, f"results_dir={results}", *how]


def orders(scale: float, chance: random.Random) -> list[str]:
    made = [f"death {who} {name}" for (who, name), count in DEATHS.items() for _ in range(max(1, round(count * scale)))]
    made += [kind for kind, count in FAULTS.items() for _ in range(max(1, round(count * scale)))]
    chance.shuffle(made)
    return made


def table(results: Path) -> pd.DataFrame:
    return pd.read_csv(results / "tidy.csv").drop(columns=TIMINGS)


def left(folder: Path) -> list[psutil.Process]:
    """Processes that still have to do with this folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and any(str(folder) in part for part in process.info["cmdline"] or []):
            found.append(process)
    return found


def main(scale: float) -> int:
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    begin, chance = time.monotonic(), random.Random(20)
    undisturbed = {}
    (root / "texts").mkdir()
    text = (TINY / "heldout.txt").read_text()
    for part in range(4):
        (root / "texts" / f"{part}.txt").write_text(text[part * len(text) // 4 : (part + 1) * len(text) // 4])
    for kind in KINDS:
        results = root / kind / "results"
        subprocess.run(command(kind, results), env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)  # fmt: skip
        undisturbed[kind] = table(results)
        cells, rows = undisturbed[kind]["cell"].nunique(), len(undisturbed[kind])
        print(f"undisturbed {kind}: {cells} cells, {rows} rows, {time.monotonic() - begin:.0f} s", flush=True)
    counted: Counter[str] = Counter()
    lost, remaining, campaigns, todo = 0, 0, 0, orders(scale, chance)
    while todo:
        kind = list(KINDS)[campaigns % 2]
        campaign = Campaign(root / f"{campaigns}", kind, todo[:SOME], chance)
        campaign.run()
        todo, campaigns = todo[SOME:], campaigns + 1
        counted += campaign.counted
        there = table(campaign.results)
        lost += undisturbed[kind]["cell"].nunique() - there["cell"].nunique()
        pd.testing.assert_frame_equal(there, undisturbed[kind])
        remaining += len(left(campaign.folder))
        so_far = f"{sum(campaign.counted.values())} faults, table equal, {time.monotonic() - begin:.0f} s"
        print(f"campaign {campaigns} ({kind}): {so_far}", flush=True)
    deaths = {kind: count for kind, count in counted.items() if kind.startswith("death")}
    for kind, count in sorted(counted.items()):
        print(f"  {count:4}  {kind}")
    print(f"  {sum(deaths.values()):4}  deaths of processes, {sum(counted.values()) - sum(deaths.values())} other faults")
    missing = Counter(orders(scale, random.Random(20))) - counted
    print(f"recovered from all {sum(counted.values())} in {campaigns} campaigns; cells lost: {lost}; processes left: {remaining}")
    print(f"{(time.monotonic() - begin) / 60:.1f} minutes" + (f"; not done: {dict(missing)}" if missing else ""))
    shutil.rmtree(root)
    return 1 if lost or remaining or missing else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if sys.argv[1:] else 1.0))
