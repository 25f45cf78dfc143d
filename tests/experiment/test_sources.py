"""A measured row's code: what it ran, no less and no more."""

import shutil

import pytest

from stlib import paths
from stlib.experiment.sources import IN_REPLICA, TOLD, code_hash

JOINT = '''

def joint(pipe, captions, options, seed, on_step):
    return _stacked(pipe, captions)


def _stacked(pipe, captions):
    return Drawing([], 0.0, [], 0.0)


METHODS = {"joint": joint, '''


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
    ("generation/illustrator.py", '"""All panels in one batch.', '"""Every panel in one batch.'),
    ("generation/illustrator.py", "def draw(", "# why\ndef draw("),
    ("generation/illustrator.py", "sum(d.vae_decode_s for", "sum(\n            d.vae_decode_s for"),
    ("generation/illustrator.py", "\nMETHODS = {", JOINT),
    ("generation/illustrator.py", "def parallel(pipe,", "def parallel(pipe, *, _=0,"),
    ("serving/workloads/__init__.py", "(StoryWorkload, SleepWorkload)", "(StoryWorkload,)"),
    ("serving/dispatcher.py", "class Dispatcher:", "class Dispatcher(object):"),
    ("serving/replica.py", "def stop_replica(handle)", "def stop_replica(handle, now=True)"),
    ("experiment/costs.py", "class Costs:", "class Costs(object):"),
], ids=["docstring", "comment", "layout", "a new method", "another method", "another workload", "dispatcher",
        "stopping", "costs"])
def test_what_a_row_does_not_run_is_not_its_code(edit, name, old, new):
    before = of("sequential")
    edit(name, old, new)
    assert of("sequential") == before


@pytest.mark.parametrize("name, old, new", [
    ("generation/illustrator.py", "return _draw(pipe, list(captions)", "return _draw(pipe, sorted(captions)"),
    ("generation/illustrator.py", "seconds = np.diff(marks)", "seconds = 2 * np.diff(marks)"),
    ("generation/illustrator.py", "[seed, panel]", "[panel, seed]"),
    ("generation/story.py", "TEMPERATURE, TOP_K = 0.6, 40", "TEMPERATURE, TOP_K = 0.6, 50"),
    ("generation/storyteller.py", "EMBEDDED_GUIDANCE = 2.5", "EMBEDDED_GUIDANCE = 2.0"),
    ("generation/loading.py", "torch.bfloat16}", "torch.float16}"),
    ("serving/workloads/story.py", "PROBE_STEPS = 2", "PROBE_STEPS = 3"),
    ("serving/replica.py", "IDLE_S = 0.1", "IDLE_S = 0.2"),
    ("experiment/measure.py", "        params = {", "        time.sleep(1)\n        params = {"),
], ids=["its method", "all methods' drawing", "seeds", "the LLM's part", "a default", "loading", "probe", "replica",
        "runner"])
def test_what_a_row_runs_is_its_code(edit, name, old, new):
    before = of("parallel")
    edit(name, old, new)
    assert of("parallel") != before


def test_code_in_a_new_module_counts_where_it_is_used(edit):
    """A method in a file of its own: its body is the code of its rows, and of no others."""
    paths.ROOT.joinpath("stlib", "generation", "pairs.py").write_text("def pairs(pipe):\n    return 1\n")
    edit("generation/illustrator.py", "import numpy as np\n", "from stlib.generation.pairs import pairs\n")
    edit("generation/illustrator.py", "METHODS = {", 'METHODS = {"pairs": pairs, ')
    before = of("pairs"), of("sequential")
    edit("generation/pairs.py", "return 1", "return 2")
    assert of("pairs") != before[0] and of("sequential") == before[1]


def test_each_way_to_tell_a_story_has_its_own_code(edit):
    told = code_hash(*TOLD, method="parallel")
    assert len({told, of("parallel"), of("sequential"), of("a method that is not there yet")}) == 4
    edit("serving/replica.py", "IDLE_S = 0.1", "IDLE_S = 0.2")
    assert code_hash(*TOLD, method="parallel") == told


def test_a_start_that_was_renamed_is_no_silence():
    with pytest.raises(ValueError, match=r"no stlib[.]serving[.]replica[.]Worker: name"):
        code_hash("stlib.serving.replica.Worker")
