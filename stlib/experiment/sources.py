"""The code that a measurement runs, so that a kept row can tell what it timed.

Not among it are the tables of alternatives, of which a row runs one; the models, which their weights stand for; checks;
and queues on paper, which serve nothing.
"""

import ast
import hashlib

from stlib import paths

TOLD = ("generation/storyteller.py", "generation/job.py", "generation/story.py", "generation/loading.py",
        "generation/quantization.py", "generation/engine.py", "generation/illustrator.py",
        "generation/early_exit.py", "generation/methods/{method}.py")
REPLICA = ("serving/replica.py", "serving/workloads/protocol.py", "experiment/measure.py")
IN_REPLICA = (*TOLD, "serving/workloads/story.py", *REPLICA)
TABLES = ("generation/tables/*.py", "generation/early_exit.py", "generation/quantization.py",
          "serving/workloads/table.py")
DONE_BY = {"story": IN_REPLICA, "table": (*TABLES, *REPLICA),
           "mixed": (*IN_REPLICA, *TABLES, "serving/workloads/mixed.py")}
SERVED = ("serving/*.py", "serving/workloads/*_requests.py",
          "serving/workloads/asked.py", "experiment/jobs.py", "experiment/costs.py", "experiment/counts.py",
          "experiment/machine.py", "experiment/measure.py", "experiment/terms.py", "queueing/arrivals.py",
          "queueing/job_table.py", "queueing/times.py", "prediction/calibration.py", "prediction/predict.py",
          "prediction/cell.py")


def in_replica(workload: str) -> tuple[str, ...]:
    """The `files` of a job of that workload, done in a replica; other workloads stand for their own code.

    Their `weights_hash` should change with it.
    """
    return DONE_BY.get(workload, REPLICA)


def code_hash(*files: str, method: str | None = None) -> str:
    """Hash of the code in `files` of stlib/ (names or patterns), comments, docstrings and layout apart.

    "{method}" in a name stands for the method, which has no code if there is no such file. Raises ValueError for any
    other name that is not there.
    """
    code = {}
    for name in files:
        found = list((paths.ROOT / "stlib").glob(name.format(method=method)))
        if not found and "{method}" not in name:
            raise ValueError(f"there is no stlib/{name}: name the code that the measurement runs as it is called now")
        code |= {str(file.relative_to(paths.ROOT)): _without_prose(file.read_text()) for file in found}
    return hashlib.sha256(repr(sorted(code.items())).encode()).hexdigest()[:16]


def _without_prose(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [one for one in node.body if not (
                isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str))]
    return ast.dump(tree)
