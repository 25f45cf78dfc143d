import numpy as np
import pytest

from stlib import paths
from stlib.experiment import JobMix
from stlib.experiment.jobs import COLUMNS
from stlib.generation import StoryJob

MIXES = sorted(file.stem for file in paths.MIXES.glob("*.yml"))


@pytest.mark.parametrize("name", MIXES)
def test_every_job_of_a_mix_is_a_valid_story_job(name):
    jobs = JobMix.from_yaml(name).sample(200, np.random.default_rng(1))
    assert tuple(jobs.columns) == COLUMNS
    for row in jobs.drop(columns=["job_id", "workload"]).to_dict("records"):
        StoryJob(**row)


def test_a_seed_reproduces_the_jobs():
    first, again = (JobMix.from_yaml("stories_exact").sample(50, np.random.default_rng(7)) for _ in range(2))
    assert first.equals(again)


def test_weights_are_kept():
    mix = JobMix.from_yaml("stories_exact")
    values, shares = mix.choices["steps"]
    drawn = mix.sample(20_000, np.random.default_rng(3))["steps"].value_counts(normalize=True)
    error = np.sqrt(shares * (1 - shares) / 20_000)
    assert (np.abs(drawn.loc[values].to_numpy() - shares) < 4 * error).all()


def test_unknown_mix_and_field_are_refused(tmp_path):
    with pytest.raises(ValueError, match="stories_exact"):
        JobMix.from_yaml("nonsense")
    (tmp_path / "mix.yml").write_text("workload: story\nspeed: 3\n")
    with pytest.raises(ValueError, match="'speed'"):
        JobMix.from_yaml(tmp_path / "mix.yml")
