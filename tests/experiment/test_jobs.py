from collections import Counter
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stlib import paths
from stlib.experiment import JobMix
from stlib.experiment.jobs import drawn, story_pool
from stlib.generation import StoryJob
from stlib.prediction.cell import read_cell
from stlib.serving.workloads import WORKLOADS, make_workload

MIXES = sorted(file.stem for file in paths.MIXES.glob("*.yml"))
EXACT = yaml.safe_load((paths.MIXES / "stories_exact.yml").read_text())


def read(folder, mix):
    """The mix as it is read from a file: text as it is, or fields."""
    (folder / "mix.yml").write_text(mix if isinstance(mix, str) else yaml.safe_dump(mix))
    return JobMix.from_yaml(folder / "mix.yml")


def without(*names, **given):
    return {name: value for name, value in (EXACT | given).items() if name not in names}


@pytest.mark.parametrize("name", MIXES)
def test_every_job_of_a_mix_is_one_that_its_workload_does(name):
    mix = JobMix.from_yaml(name)
    jobs, workload = mix.sample(200, np.random.default_rng(1)), make_workload(mix.workload)
    assert {*jobs} == {"job_id", "workload", *workload.fields} and (jobs["workload"] == mix.workload).all()
    for row in jobs.drop(columns=["job_id", "workload"]).to_dict("records"):
        workload.check(row)


@pytest.mark.parametrize("name", ["images", "stories", "stories_exact"])
def test_every_job_of_a_mix_is_a_valid_story_job(name):
    jobs = JobMix.from_yaml(name).sample(200, np.random.default_rng(1))
    assert list(jobs) == ["job_id", "workload", *(f for f in StoryJob.model_fields if f in jobs)]
    assert jobs.shape[1] == 11
    for row in jobs.drop(columns=["job_id", "workload"]).to_dict("records"):
        StoryJob(**row)


@pytest.mark.parametrize("folder", sorted((paths.REFERENCE / "served").iterdir()), ids=lambda folder: folder.name)
def test_the_served_jobs_are_drawn_again(folder):
    """The random stream of the committed mixes stays as it was: every cell's jobs are those that were served."""
    cell, _, jobs, _ = read_cell(folder)
    again = drawn(JobMix.from_yaml(cell["mix"]), cell["arrivals"], cell["lam"], cell["seed"], cell["n_jobs"])[0]
    if "captions" in jobs:
        jobs["captions"] = [None if captions is None else tuple(captions) for captions in jobs["captions"]]
    jobs, again = (one.astype(object).where(one.notna(), None) for one in (jobs, again))
    pd.testing.assert_frame_equal(jobs.sort_values("job_id", ignore_index=True), again, check_dtype=False)


def test_a_seed_reproduces_the_jobs():
    first, again = (JobMix.from_yaml("stories_exact").sample(50, np.random.default_rng(7)) for _ in range(2))
    assert first.equals(again)


def test_the_order_of_the_lines_does_not_matter(tmp_path):
    other = read(tmp_path, dict(reversed(EXACT.items()))).sample(50, np.random.default_rng(7))
    assert JobMix.from_yaml("stories_exact").sample(50, np.random.default_rng(7)).equals(other)


def test_weights_are_kept():
    mix = JobMix.from_yaml("stories_exact")
    rows, shares = mix.choices["steps"]
    drawn = mix.sample(20_000, np.random.default_rng(3))["steps"].value_counts(normalize=True)
    error = np.sqrt(shares * (1 - shares) / 20_000)
    assert (np.abs(drawn.loc[[row["steps"] for row in rows]].to_numpy() - shares) < 4 * error).all()


def test_one_text_is_a_list_of_one(tmp_path):
    one, listed = (read(tmp_path, without("exact_tokens", texts=texts, llm_tokens=64))
                   for texts in ("prompt", ["prompt"]))
    assert one.sample(20, np.random.default_rng(1)).equals(listed.sample(20, np.random.default_rng(1)))
    jobs, _ = one.combinations()
    assert (jobs["prompt"] != "").all() and not one.sample(20, np.random.default_rng(1))["exact_tokens"].any()


@pytest.mark.parametrize("mix, message", [
    ("", "mix.yml holds None"),
    ("steps: 8\n\tworkload: story\n", "mix.yml, line 2"),
    ("workload: story\nsteps: 8\nsteps: 9\n", "mix.yml, line 3: 'steps' is given twice"),
    ([1, 2], r"mix.yml holds \[1, 2\]"),
    (without("workload"), "mix.yml: workload is missing"),
    (without(workload="poems"), "mix.yml: unknown workload 'poems'"),
    (without(workload=["story"]), r"mix.yml: workload = \['story'\]"),
    (without(workload=None), r"mix.yml, line \d+: a value is empty"),
    (without("steps"), "mix.yml: steps is missing"),
    (without("pool"), "mix.yml: give both a pool"),
    (without("texts"), "mix.yml: give both a pool"),
    (without(pool="nope"), "mix.yml: unknown story pool 'nope': use one of stories"),
    (without(pool=["stories"]), r"mix.yml: pool = \['stories'\]"),
    (without(texts=[]), r"mix.yml: texts = \[\]"),
    (without(texts="title"), "mix.yml: texts = 'title': .*'prompt' or 'captions'"),
    (without(texts=["prompt", 3]), r"mix.yml: texts\[1\] = 3"),
    (without(texts={"prompt": 1}), "mix.yml: texts"),
    (without(texts=None), r"mix.yml, line \d+: a value is empty"),
    (without(texts=True), "mix.yml: texts"),
    (without(speed=3), "mix.yml: unknown field 'speed'"),
    (without(method="parallel"), "mix.yml: unknown field 'method'"),
    (without(prompt="a fox"), "mix.yml: prompt is given twice"),
    (without(steps=0), "mix.yml: steps = 0: .*1 to 200"),
    (without(steps=[8, 201]), "mix.yml: steps = 201"),
    (without(steps={8: 1, -1: 2}), "mix.yml: steps = -1"),
    (without(steps=8.0), r"mix.yml: steps = 8\.0"),
    (without(steps="8"), "mix.yml: steps = '8'"),
    (without(steps=True), "mix.yml: steps = True"),
    (without(steps=[8, None]), r"mix.yml, line \d+: a value is empty"),
    (without(steps=None), r"mix.yml, line \d+: a value is empty"),
    (without(steps=[]), r"mix.yml: steps = \[\]"),
    (without(steps={}), "mix.yml: steps = {}"),
    (without(steps=[8, 8]), r"mix.yml: steps = \[8, 8\]: .*different"),
    (without(steps=[[8, 12]]), r"mix.yml: steps = \[8, 12\]"),
    (without(steps={8: 0, 12: 1}), "mix.yml: steps = {8: 0, .*weight = 0 must"),
    (without(steps={8: -1, 12: 2}), "mix.yml: steps = {8: -1, .*weight = -1 must"),
    (without(steps={8: float("nan")}), "mix.yml: steps = {8: nan}: weight = nan must"),
    (without(steps={8: float("inf")}), "mix.yml: steps = {8: inf}: weight = inf must"),
    (without(steps={8: True}), "mix.yml: steps = {8: True}: weight = True must"),
    (without(steps={8: "2"}), "mix.yml: steps = {8: '2'}: weight = 2 must"),
    (without(steps={8: None}), r"mix.yml, line \d+: a value is empty"),
    (without(image_size=100), "mix.yml: image_size = 100"),
    (without(guidance_scale=float("nan")), "mix.yml: guidance_scale = nan"),
    (without(llm_tokens=2), "mix.yml: llm_tokens = 2 for "),
    (without(n_panels=[1, 5]), "mix.yml: n_panels = 5: the pool's stories have 4 captions"),
    (without(n_panels="4"), "mix.yml: n_panels = '4'"),
    (without(classes=[]), r"mix.yml: classes = \[\]"),
    (without(classes=3), "mix.yml: classes = 3"),
    (without("steps", classes={"steps": 8}), "mix.yml: classes = .*give each class a weight"),
    (without("steps", classes=[{"weight": 1, "steps": 8}, {"weight": 1, "n_panels": 2}]), "mix.yml: classes = "),
    (without("steps", classes=[{"weight": 0, "steps": 8}]), "mix.yml: classes = .*weight = 0 must"),
    (without("steps", classes=[{"weight": 1, "steps": 0}]), "mix.yml: steps = 0"),
    (without(classes=[{"weight": 1, "steps": 8}]), "mix.yml: steps is given twice"),
    ({"workload": "sleep", "seconds": -1}, "mix.yml: seconds = -1"),
    ({"workload": "sleep", "seconds": True}, "mix.yml: seconds = True"),
    ({"workload": "sleep", "seconds": 1, "steps": 8}, "mix.yml: unknown field 'steps'"),
    ({"workload": "sleep", "seconds": 1, "texts": "prompt", "pool": "stories"}, "mix.yml: unknown field 'prompt'"),
])
def test_a_wrong_mix_is_refused_when_it_is_read(tmp_path, mix, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, mix)


def test_an_unknown_mix_is_refused():
    with pytest.raises(ValueError, match="stories_exact"):
        JobMix.from_yaml("nonsense")


class Table:
    """A workload that says of its jobs no more than its fields and what `validate` does."""

    name = "table"
    fields: ClassVar = {"model": ..., "rows": ...}

    def validate(self, params):
        if params["rows"] > 100:
            raise ValueError(f"rows = {params['rows']}: give at most 100")


def test_any_workload_s_fields_are_choices(tmp_path, monkeypatch):
    mix = read(tmp_path, {"workload": "sleep", "seconds": {0.1: 3, 0.2: 1}})
    jobs = mix.sample(4000, np.random.default_rng(1))
    assert list(jobs) == ["job_id", "workload", "seconds"] and set(jobs["workload"]) == {"sleep"}
    assert (jobs["seconds"] == 0.1).mean() == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 4000))
    grid, shares = mix.combinations()
    assert list(grid["seconds"]) == [0.1, 0.2] and list(shares) == [0.75, 0.25]
    monkeypatch.setitem(WORKLOADS, "table", Table)
    mix = read(tmp_path, {"workload": "table", "rows": [10, 100], "model": ["a", "b", 3]})
    jobs = mix.sample(50, np.random.default_rng(1))
    assert list(jobs) == ["job_id", "workload", "model", "rows"] and set(jobs["model"]) == {"a", "b", 3}
    with pytest.raises(ValueError, match=r"mix\.yml: rows = 101"):
        read(tmp_path, {"workload": "table", "rows": [10, 101], "model": "a"})


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 200)), min_size=1, max_size=4),
       st.dictionaries(st.integers(4, 64), st.integers(1, 9), min_size=1, max_size=3),
       st.sampled_from([True, False, [True, False]]))
def test_samples_and_combinations_agree(tmp_path_factory, classes, tokens, exact):
    """Fields of a class are drawn together, the others apart: every combination as often as its probability says."""
    mix = read(tmp_path_factory.mktemp("mix"), without(
        "n_panels", "steps", texts=["prompt", "captions"], llm_tokens=tokens, exact_tokens=exact,
        classes=[{"weight": w, "n_panels": panels, "steps": steps} for w, panels, steps in classes]) | {"llm_tokens": {
            count + 12: weight for count, weight in tokens.items()}})
    n = 4000
    jobs, (grid, shares) = mix.sample(n, np.random.default_rng(0)), mix.combinations()
    names = ["n_panels", "steps", "llm_tokens", "exact_tokens"]
    expected = Counter()
    for row, share in zip(grid[names].itertuples(index=False), shares, strict=True):
        expected[tuple(row)] += share
    seen = Counter(map(tuple, jobs[names].itertuples(index=False)))
    assert sum(shares) == pytest.approx(1) and seen.keys() <= expected.keys()
    for row, share in expected.items():
        assert abs(seen[row] / n - share) < 5 * np.sqrt(share * (1 - share) / n) + 1e-9
    assert all(len(captions) == panels for captions, panels in zip(jobs["captions"], jobs["n_panels"], strict=True))


def test_a_prompt_may_be_a_choice_instead_of_a_pool(tmp_path):
    mix = read(tmp_path, without("pool", "texts", "exact_tokens", prompt=["a fox", "a dog"], llm_tokens=64))
    jobs = mix.sample(30, np.random.default_rng(1))
    assert set(jobs["prompt"]) == {"a fox", "a dog"} and jobs["captions"].isna().all()
    assert set(mix.combinations()[0]["prompt"]) == {"a fox", "a dog"}


@pytest.mark.parametrize("pools, message", [
    ("stories: []\n", r"prompts.yml: stories = \[\]"),
    ("stories: a fox\n", r"prompts.yml: stories.* = 'a fox'"),
    ("stories:\n- prompt: a fox\n", r"prompts.yml: stories\[0\]: captions is missing"),
    ("stories:\n- {prompt: 3, captions: [a]}\n", r"prompts.yml: stories\[0\]: prompt = 3"),
    ("stories:\n- {prompt: a fox, captions: []}\n", r"stories\[0\]: captions = \[\]"),
    ("stories:\n- {prompt: a fox, captions: [a], title: b}\n", r"stories\[0\]: unknown field 'title'"),
])
def test_a_wrong_pool_is_refused(tmp_path, monkeypatch, pools, message):
    (tmp_path / "prompts.yml").write_text(pools)
    monkeypatch.setattr(paths, "DATA", tmp_path)
    with pytest.raises(ValueError, match=message):
        story_pool("stories")


def test_a_mix_of_mixes_has_each_by_its_weight_and_none_of_the_other_s_fields():
    mix = JobMix.from_yaml("stories_and_tables")
    jobs = mix.sample(3000, np.random.default_rng(1))
    is_story = jobs["kind"] == "story"
    assert mix.workload == "mixed" and is_story.mean() == pytest.approx(1 / 3, abs=0.03)
    assert jobs.loc[is_story, "rows"].isna().all() and jobs.loc[~is_story, ["prompt", "n_panels"]].isna().all(axis=None)
    assert set(jobs.loc[is_story, "n_panels"]) == {1, 2, 3, 4} and jobs["job_id"].tolist() == list(range(3000))
    combinations, shares = mix.combinations()
    assert len(combinations) == 36 + 12 and shares.sum() == pytest.approx(1)
    assert shares[combinations["kind"] == "table"].sum() == pytest.approx(2 / 3)
    pd.testing.assert_frame_equal(jobs.head(5), mix.sample(3000, np.random.default_rng(1)).head(5))


@pytest.mark.parametrize("text, message", [
    ("workload: mixed\nmixes: {tables: 1}", "two or more mixes"),
    ("workload: mixed\nmixes: {tables: 1, x: 1}", "job mix"),
    ("workload: mixed\nmixes: {tables: 1, images: 0}", "weight|above 0"),
    ("workload: mixed\nmixes: {tables: 1, images: 1}\nsteps: 3", "unknown field 'steps'"),
    ("workload: sleep\nmixes: {tables: 1, images: 1}", "unknown workload of mix tables")])
def test_a_mix_of_mixes_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "own.yml").write_text(text)
    with pytest.raises(ValueError, match=message):
        JobMix.from_yaml(tmp_path / "own.yml")
