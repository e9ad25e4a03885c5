"""A Ray cluster of two nodes on this machine; the grid of places.py through it, and through the launchers that need none.

    python tests/integration/two_rays.py [OVERRIDE...]      # make test-ray

Needs the extras `ray` and `slurm` (for `submitit_local`). A worker is killed, then a whole node.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from places import compare, disturbed, killed, read, sweep, workplace

from msrnn_bench.results.leases import Holder

RAY = ["hydra/launcher=ray", "hydra.launcher.address=auto"]


@contextmanager
def cluster() -> Iterator[Any]:
    """Two raylets of one core each, as on two machines; the second one may be lost."""
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # a busy machine needs more than its 30
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    )
    try:
        made.second = made.add_node(num_cpus=1, object_store_memory=80_000_000)
        made.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = made.address
        yield made
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        ray.shutdown()
        made.shutdown()


def _raylet(pid: int) -> int:
    """The raylet, which is the node, that a worker belongs to."""
    return next(parent.pid for parent in psutil.Process(pid).parents() if parent.name().startswith("raylet"))


if __name__ == "__main__":
    with workplace():
        told = (process := sweep("calm")).communicate()[0]
        assert process.returncode == 0, told
        tables = {"calm": read("calm")}
        with cluster() as made:
            second = made.second.all_processes["raylet"][0].process.pid

            def node_lost(holder: Holder) -> str:
                if _raylet(holder.pid) != second:
                    return ""
                made.remove_node(made.second, allow_graceful=False)
                return f"the node of process {holder.pid} lost at {holder.label}"

            tables["ray_killed"] = disturbed("ray_killed", killed, *RAY)
            tables["ray_node_lost"] = disturbed("ray_node_lost", node_lost, *RAY)
        for name in ("processes", "submitit_local"):
            tables[name] = disturbed(name, killed, f"hydra/launcher={name}")
        compare(tables)
