"""A cluster of two Ray nodes on this machine: the replicas are spread over them, and a node that goes is survived."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from service import LONG, Command, until

pytest.importorskip("ray")
from ray.cluster_utils import Cluster


@pytest.mark.slow
def test_a_node_killed_under_load(monkeypatch, record_summary):
    """Each request is answered once; the lost node's job is done again by the other, and a new node is taken up."""
    began = time.monotonic()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = nodes.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        with Command("--replicas", "2", "--routing", "jsq", "--method", "parallel") as service:
            assert service.queue()["replicas"] == 2  # of one CPU slot each: one a node
            with ThreadPoolExecutor(8) as pool:
                answers = [pool.submit(service.send, LONG) for _ in range(8)]
                until(lambda: service.queue()["in_system"] == 8)
                nodes.remove_node(second, allow_graceful=False)
                killed = time.monotonic()
                until(lambda: service.queue()["replicas"] == 1, timeout_s=60)
                seen_s = time.monotonic() - killed
                answers = [answer.result() for answer in answers]
            assert [answer.status_code for answer in answers] == [200] * 8
            assert sorted('"attempt": 2' in answer.headers["X-Job"] for answer in answers) == [False] * 7 + [True]
            nodes.add_node(num_cpus=1)
            until(lambda: service.queue()["replicas"] == 2, timeout_s=120)
            counts = service.queue()
            assert counts["offered"] == 8 == counts["completed"]
    finally:
        nodes.shutdown()
    record_summary("two_nodes", {"node_missed_after_s": seen_s, "whole_s": time.monotonic() - began})
