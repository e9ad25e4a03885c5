"""What submitit does not see of its jobs: that one died in a queue without accounting, that others run on beside a dead one."""

from __future__ import annotations

import getpass
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

OFTEN = 60  # seconds between two looks at the queue, at most; submitit begins with 2


@contextmanager
def attended() -> Iterator[None]:
    """While it lasts the queue itself is asked for jobs, and a dead job's result is its error.

    submitit asks the accounting (`sacct`). Many clusters have none: then a job that was killed counts as running forever, after
    a warning a minute. And Hydra's plugin reads its jobs' results in turn: the error of the first dead one would end its reading
    while the others run."""
    from submitit import Job, SlurmJob
    from submitit.core.utils import FailedJobError, UncompletedJobError

    asked, answered = SlurmJob.watcher, Job.results

    def results(job: Any) -> list[Any]:
        try:
            return list(answered(job))
        except (FailedJobError, UncompletedJobError):
            told = f"job {job.job_id} ended before its cell did; {job.paths.stderr} may say why"
            return [JobReturn(status=JobStatus.FAILED, _return_value=told)]

    logging.getLogger("submitit").setLevel(logging.ERROR)
    SlurmJob.watcher, Job.results = _queue(), results
    try:
        yield
    finally:
        SlurmJob.watcher, Job.results = asked, answered


def _queue() -> Any:
    """The states of our jobs by `squeue`; one that the queue no longer knows has ended."""
    from submitit.slurm.slurm import SlurmInfoWatcher

    class Queue(SlurmInfoWatcher):  # type: ignore[misc, unused-ignore]
        def _make_command(self) -> list[str] | None:
            if not self._registered - self._finished:
                return None
            return ["squeue", f"--user={getpass.getuser()}", "--array", "--noheader", "--states=all", "--format=%i %T"]

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            lines = (string.decode() if isinstance(string, bytes) else string).splitlines()
            there = {job: state for job, _, state in (line.strip().partition(" ") for line in lines)}
            return {job: {"State": there.get(job, "ENDED")} for job in self._registered}

    return Queue(delay_s=OFTEN)
