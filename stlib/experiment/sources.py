"""The code that a measurement ran, found by name from where it starts, so that a kept row can tell what it timed."""

import ast
import functools
import hashlib
from pathlib import Path

from stlib import paths

# tables of alternatives, of which a row runs one (give it as a root); the models, which their weights stand for; and
# queues on paper, which serve nothing
NOT_FOLLOWED = ("stlib.generation.illustrator.METHODS", "stlib.serving.workloads.WORKLOADS", "stlib.generation.models",
                "stlib.queueing.formulas", "stlib.queueing.chains", "stlib.queueing.simulation.run_jobs",
                "stlib.queueing.simulation.finite_run")
TOLD = ("stlib.generation.storyteller.Storyteller", "stlib.generation.illustrator.METHODS[{method}]")
IN_REPLICA = (*TOLD, "stlib.serving.workloads.story.StoryWorkload", "stlib.serving.replica.Replica",
              "stlib.experiment.measure.run_on")


def in_replica(workload: str) -> tuple[str, ...]:
    """The roots of `code_hash` of a job of that workload, done in a replica; other workloads stand for their own code.

    Their `weights_hash` should change with it.
    """
    return IN_REPLICA if workload == "story" else IN_REPLICA[-2:]


def code_hash(*roots: str, method: str | None = None) -> str:
    """Hash of all code of stlib that `roots` reach by name, comments, docstrings and layout apart.

    roots: full names, as "stlib.serving.replica.Replica", or the entry of a table, as "...METHODS[{method}]", which
    adds nothing if the table has no such entry. NOT_FOLLOWED is not entered from other code. Raises ValueError for a
    name that is not there.
    """
    reached, todo = {}, [_root(root.format(method=method)) for root in roots]
    while todo:
        name, module, node = todo.pop()
        if node is not None and name not in reached:
            reached[name] = ast.dump(node)
            todo += [one for one in map(_found, _used(module, node)) if not one[0].startswith(NOT_FOLLOWED)]
    return hashlib.sha256(repr(sorted(reached.items())).encode()).hexdigest()[:16]


def _root(name: str) -> tuple[str, str, ast.AST | None]:
    found = _found(name)
    if found[2] is None and not name.endswith("]"):
        raise ValueError(f"there is no {name}: name the code where the measurement starts as it is called in stlib now")
    return found


def _found(name: str) -> tuple[str, str, ast.AST | None]:
    """The name under its own module, that module, and the statement (of a table: the entry) that defines it, if any."""
    name, entry, key = name.removesuffix("]").partition("[")
    parts = name.split(".")
    size = next(n for n in range(len(parts), 0, -1) if _file(parts[:n]).exists())
    module, rest = ".".join(parts[:size]), parts[size:]
    node = _definitions(_file(parts[:size]).read_text()).get(rest[0]) if rest else None
    if isinstance(node, str):  # imported from another module of ours
        return _found(".".join([node, *rest[1:]]) + entry + key)
    if key and node is not None:
        entries = zip(node.value.keys, node.value.values, strict=True)
        node = next((value for one, value in entries if one.value == key), None)
    return ".".join([module, *rest[:1]]) + entry + key, module, node


def _file(parts: list[str]) -> Path:
    place = paths.ROOT.joinpath(*parts)
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


@functools.cache
def _definitions(source: str) -> dict[str, ast.AST | str]:
    """What a module's own names stand for: a statement without its docstrings, or the full name of an import."""
    tree, known = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [one for one in node.body if not _is_prose(one)]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            known |= _imported(node)
        else:
            names = [node.name] if hasattr(node, "name") else [
                one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]
            known |= dict.fromkeys(names, node)
    return known


def _is_prose(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imported(node: ast.ImportFrom) -> dict[str, str]:
    return {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names
            if node.module and node.module.split(".")[0] == "stlib"}


def _used(module: str, node: ast.AST) -> set[str]:
    """The full names that a statement of `module` mentions, other than its local ones' (which define nothing)."""
    used = set()
    for one in ast.walk(node):
        if isinstance(one, ast.ImportFrom):
            used |= set(_imported(one).values())
        elif isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name):
            used.add(f"{module}.{one.value.id}.{one.attr}")
        elif isinstance(one, ast.Name):
            used.add(f"{module}.{one.id}")
    return used
