import json
import sys

import pytest
import ray
from hypothesis import settings

from stlib import paths
from stlib.__main__ import main
from stlib.serving.replica import ReplicaSpec

settings.register_profile("untimed", deadline=None)  # a busy machine is no defect
settings.load_profile("untimed")


LONG_FIRST = ("test_new_workload", "test_cli", "serving", "prediction", "experiment", "generation")


def pytest_collection_modifyitems(items):
    """Files that take long go first, so that two processes end together."""
    items.sort(key=lambda item: [name in str(item.path) for name in LONG_FIRST], reverse=True)


SLOTS = 10  # more than cores: most of what is tested waits


@pytest.fixture(scope="session")
def cluster():
    """Ray, started once for all tests, since its start takes ten seconds; each test stops its own replicas."""
    ray.shutdown()  # of a test that started its own
    ray.init("local", num_cpus=SLOTS, include_dashboard=False, logging_level="CRITICAL", log_to_driver=False,
             _node_ip_address="127.0.0.1", object_store_memory=2**28, _system_config={"worker_niceness": 0})
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def replicas(cluster):
    """Three replicas that sleep."""
    return [ReplicaSpec("sleep").start() for _ in range(3)]


@pytest.fixture
def record_summary():
    """record(name, summary) commits what a slow test found to data/reference/validate/NAME.json."""

    def record(name: str, summary: dict) -> None:
        folder = paths.REFERENCE / "validate"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")

    return record


@pytest.fixture
def shell(capsys, monkeypatch):
    """The same in this process, quicker: what it printed, and the line of its error or the exit code."""
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stlib", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return capsys.readouterr().out, end.value.code or 0

    return run
