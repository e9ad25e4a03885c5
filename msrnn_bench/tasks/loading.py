"""The model of a job, loaded once for all cells of a process that share it. One model at a time."""

from __future__ import annotations

import json

from msrnn_bench.job import Job
from msrnn_bench.models import Loaded


def load(job: Job) -> Loaded:
    """The job's model on its device; what an earlier cell loaded of another model, or cut with it, is let go."""
    content = json.dumps(job.model.fingerprint(seed=job.seed), sort_keys=True)
    key = ("model", content, job.dtype, job.device, str(job.model.device_map))
    if key not in job.shared:
        for old in [k for k in job.shared if k[0] in ("model", "chunks")]:
            del job.shared[old]
        job.shared[key] = job.model.load(dtype=job.dtype, device=job.device, seed=job.seed)
    return job.shared[key]
