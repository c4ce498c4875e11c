"""A Ray cluster of two nodes on this machine, one of which is removed in the middle of a study with what runs there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palimpsest.method import Context
from palimpsest.study.executors import Where
from palimpsest.study.index import Index
from palimpsest.study.run import Options, StudyResult, run_study
from palimpsest.study.spec import StudySpec

STORE_BYTES = 100_000_000  # of each node's object store, in which a study puts next to nothing


def on_two_nodes(spec: StudySpec, out: Path, after: int) -> tuple[StudyResult, dict[str, Any]]:
    """Run a study on two nodes of one CPU; when `after` steps are done and a worker of the second node is at work, that
    node is removed, at once. Returns the run's result, and when and what was removed (empty where nothing was)."""
    import ray

    cluster, second = _started()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    killed: dict[str, Any] = {}
    true_note = Index.note

    def note(index: Index, step: str) -> None:
        true_note(index, step)
        done = len(index.states())
        if not killed and done >= after and _workers_on(second.node_id):
            killed.update(after_steps=done, nodes=sum(n["Alive"] for n in ray.nodes()))
            cluster.remove_node(second, allow_graceful=False)

    Index.note = note  # type: ignore[method-assign]
    try:
        options = Options(where=Where(ray=cluster.address, workers=2))
        return run_study(spec, out, Context(threads=1), options=options), killed
    finally:
        Index.note = true_note  # type: ignore[method-assign]
        ray.shutdown()
        cluster.shutdown()


def _started() -> tuple[Any, Any]:
    """The cluster and its second node. Ray gives a node 30 s to begin, which a busy machine may need three times."""
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    for last in (False, False, True):
        cluster = Cluster()
        try:
            cluster.add_node(**size, include_dashboard=False)
            return cluster, cluster.add_node(**size)
        except Exception as error:
            cluster.shutdown()
            if last or "timed out during startup" not in str(error):
                raise
    raise AssertionError


def _workers_on(node: str) -> int:
    """How many of the study's workers live on a node."""
    from ray._private import state  # the public call asks the dashboard, which stays off

    found = state.actors(actor_state_name="ALIVE").values()
    return sum(actor["Address"]["NodeID"] == node for actor in found)
