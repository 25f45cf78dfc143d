"""A measured row's code: what it ran, no less and no more."""

import shutil

import pytest
from test_structure import imported, module_of

from stlib import paths
from stlib.experiment.sources import DONE_BY, IN_REPLICA, SERVED, TOLD, code_hash
from stlib.generation import METHODS


@pytest.fixture
def edit(tmp_path, monkeypatch):
    """Replaces text in a copy of the library; `code_hash` reads the copy."""
    shutil.copytree(paths.ROOT / "stlib", tmp_path / "stlib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(paths, "ROOT", tmp_path)

    def replace(name, old, new):
        file = tmp_path / "stlib" / name
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))
    return replace


def of(method):
    return code_hash(*IN_REPLICA, method=method)


@pytest.mark.parametrize("name, old, new", [
    ("generation/methods/sequential.py", "independent of each other.", "each for itself."),
    ("generation/illustrator.py", "def draw_batch(", "# why\ndef draw_batch("),
    ("generation/methods/sequential.py", "draw_batch(pipe, [caption]", "draw_batch(\n            pipe, [caption]"),
    ("generation/methods/__init__.py", "METHODS = {", 'METHODS = {"other": parallel.METHOD, '),
    ("generation/methods/parallel.py", "def parallel(pipe,", "def parallel(pipe, *, _=0,"),
    ("serving/workloads/__init__.py", "(StoryWorkload, TableWorkload,", "(StoryWorkload,"),
    ("serving/dispatcher.py", "class Dispatcher:", "class Dispatcher(object):"),
    ("queueing/simulation.py", "def simulate(", "def simulate(_, "),
    ("experiment/costs.py", "class Costs:", "class Costs(object):"),
], ids=["docstring", "comment", "layout", "a new method", "another method", "another workload", "dispatcher",
        "queues on paper", "costs"])
def test_what_a_row_does_not_run_is_not_its_code(edit, name, old, new):
    before = of("sequential")
    edit(name, old, new)
    assert of("sequential") == before


@pytest.mark.parametrize("name, old, new", [
    ("generation/methods/parallel.py", "list(captions)", "sorted(captions)"),
    ("generation/illustrator.py", "seconds = np.diff(marks)", "seconds = 2 * np.diff(marks)"),
    ("generation/illustrator.py", "[seed, panel]", "[panel, seed]"),
    ("generation/story.py", "TEMPERATURE, TOP_K = 0.6, 40", "TEMPERATURE, TOP_K = 0.6, 50"),
    ("generation/storyteller.py", "EMBEDDED_GUIDANCE = 2.5", "EMBEDDED_GUIDANCE = 2.0"),
    ("generation/quantization.py", "Precision(torch.bfloat16)", "Precision(torch.float16)"),
    ("serving/workloads/story.py", "PROBE_STEPS = 2", "PROBE_STEPS = 3"),
    ("serving/replica.py", "IDLE_S = 0.1", "IDLE_S = 0.2"),
    ("experiment/measure.py", "        params = {", "        time.sleep(1)\n        params = {"),
], ids=["its method", "all methods' drawing", "seeds", "the LLM's part", "a default", "loading", "probe", "replica",
        "runner"])
def test_what_a_row_runs_is_its_code(edit, name, old, new):
    before = of("parallel")
    edit(name, old, new)
    assert of("parallel") != before


def test_a_method_in_a_file_of_its_own_is_the_code_of_its_rows_and_of_no_others(edit):
    pairs = paths.ROOT / "stlib" / "generation" / "methods" / "pairs.py"
    pairs.write_text("def pairs(pipe):\n    return 1\n")
    before = of("pairs"), of("sequential")
    edit("generation/methods/pairs.py", "return 1", "return 2")
    assert of("pairs") != before[0] and of("sequential") == before[1]


def test_a_method_lies_in_the_file_that_its_rows_name():
    for name, method in METHODS.items():
        assert method.draw.__module__ == f"stlib.generation.methods.{name}"


NO_CODE_OF_A_ROW = {  # tables of alternatives; weights stand for the models; checks, readers of files, names
    "stlib", "stlib.generation", "stlib.generation.methods", "stlib.generation.models", "stlib.serving.workloads",
    "stlib.serving.workloads.protocol", "stlib.serving.workloads.story_requests", "stlib.serving.workloads.asked",
    "stlib.serving.workloads.table_requests", "stlib.serving.rules", "stlib.paths",
    "stlib.settings", "stlib.queueing.checks", "stlib.serving.dispatcher", "stlib.serving.replay"}
NOT_SERVED = NO_CODE_OF_A_ROW | {  # fits, rows and queues on paper
    "stlib.queueing", "stlib.queueing.formulas", "stlib.queueing.planning", "stlib.queueing.simulation",
    "stlib.experiment.rows", "stlib.experiment.least_squares", "stlib.experiment.sources", "stlib.serving",
    "stlib.generation.tables"}


@pytest.mark.parametrize("files, known", [
    *((files, NO_CODE_OF_A_ROW) for files in DONE_BY.values()), ((*IN_REPLICA, *SERVED), NOT_SERVED)])
def test_what_the_named_files_import_is_named_too(files, known):
    """So that a new module is not forgotten: it is code of the rows, or stands in the list of what is not."""
    root = paths.ROOT
    there = {file for name in files for file in (root / "stlib").glob(name.format(method="*"))}
    named = {module_of(file.relative_to(root)) for file in there}
    for file in there:
        used = imported(file.read_text(), str(file.relative_to(root)))
        assert {name for name in used if name.startswith("stlib")} <= named | known, file


def test_each_way_to_tell_a_story_has_its_own_code(edit):
    told = code_hash(*TOLD, method="parallel")
    assert len({told, of("parallel"), of("sequential"), of("a method that is not there yet")}) == 4
    edit("serving/replica.py", "IDLE_S = 0.1", "IDLE_S = 0.2")
    assert code_hash(*TOLD, method="parallel") == told


def test_a_start_that_was_renamed_is_no_silence():
    with pytest.raises(ValueError, match=r"no stlib/serving/worker[.]py: name"):
        code_hash("serving/worker.py")
