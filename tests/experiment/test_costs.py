"""The service-time model on rows whose law is known, and what it refuses."""

import numpy as np
import pandas as pd
import pytest

from stlib.experiment import ServiceTimeModel
from stlib.experiment.design import full_factorial
from stlib.experiment.machine import fit_level, lag_correlation, smoothed

CV, GAMMA, PHI = 0.07, 0.9, 0.8
LEVELS = {"method": ["sequential", "parallel"], "n_panels": [1, 2, 4], "steps": [6, 12, 20], "llm_tokens": [4, 16],
          "prompt": ["", "a fox"], "guidance_scale": [1.0, 2.5], "image_size": [96, 128]}


def true_mean_s(jobs, method):
    """0.1 s, 0.05 s a token, 0.03 s a panel, 0.02 s a pass; in a batch 0.01 s a pass and 0.01 s a step."""
    passes = jobs["n_panels"] * jobs["steps"] * (1 + (jobs["guidance_scale"] > 1)) * (jobs["image_size"] / 128) ** 2
    llm = (jobs["prompt"] != "") * (0.1 + 0.05 * jobs["llm_tokens"])
    drawing = 0.02 * passes if method == "sequential" else 0.01 * passes + 0.01 * jobs["steps"]
    return (0.1 + llm + 0.03 * jobs["n_panels"] + drawing).to_numpy()


def simulated_rows(rng, repeats=3, cv=CV):
    rows = pd.concat([full_factorial(LEVELS)] * repeats).sample(frac=1, random_state=int(rng.integers(1000)))
    rows = rows.assign(exact_tokens=rows["prompt"] != "", threads=1, at_s=np.arange(len(rows)) * 1.0)
    noise = rng.standard_normal(len(rows)) * 0.1
    path = noise.copy()
    for i in range(1, len(rows)):
        path[i] = PHI * path[i - 1] + np.sqrt(1 - PHI**2) * noise[i]
    mean = np.where(rows["method"] == "sequential", true_mean_s(rows, "sequential"), true_mean_s(rows, "parallel"))
    shape = 1 / cv**2
    return rows.assign(run_s=mean * np.exp(GAMMA * path) * rng.gamma(shape, 1 / shape, len(rows)),
                       probe_s=0.08 * np.exp(path), probes=2, probe_cost_s=0.34)


@pytest.fixture(scope="module")
def model():
    return ServiceTimeModel.fit(simulated_rows(np.random.default_rng(3)))


@pytest.fixture(scope="module")
def jobs():
    grid = {"n_panels": [1, 3, 4], "steps": [8, 16], "llm_tokens": [8, 16], "prompt": ["", "a cat"],
            "guidance_scale": [2.5, 1.0], "image_size": [128, 96]}
    return full_factorial(grid).assign(exact_tokens=lambda row: row["prompt"] != "")


@pytest.mark.parametrize("method", LEVELS["method"])
def test_means_of_unseen_combinations_are_found(model, jobs, method):
    level = model.probe_s / 0.08  # the model is stated at the experiment's mean factor
    truth = true_mean_s(jobs, method) * level**GAMMA
    assert np.abs(model.mean_s(jobs, method) / truth - 1).max() < 0.04
    moments = model.moments(jobs, method)
    assert abs(moments.mean_s - truth.mean()) < 4 * moments.mean_se_s
    assert moments.mean_se_s < 0.01 * moments.mean_s


def test_the_machine_and_the_residual_are_found(model):
    assert abs(model.gamma - GAMMA) < 4 * model.gamma_se
    assert model.residual_cv == pytest.approx(CV, rel=0.1)
    assert abs(model.residual_lag1) < 4 / np.sqrt(model.n_rows)
    assert model.phi == pytest.approx(PHI, abs=0.1)
    path = model.factor_path(300, np.random.default_rng(0), draws=2000)
    assert path.shape == (2000, 300) and model.factor_path(5, np.random.default_rng(0)).shape == (5,)
    assert np.std(np.log(path)) == pytest.approx(model.level.sd, rel=0.03)
    assert np.log(path).mean() == pytest.approx(0, abs=4 * np.log(path).mean(axis=1).std() / np.sqrt(2000))


def test_noise_of_the_probe_does_not_bias_its_exponent():
    rng = np.random.default_rng(6)
    rows = simulated_rows(rng)
    seen = rows["probe_s"] * np.exp(0.07 * rng.standard_normal(len(rows)))
    model = ServiceTimeModel.fit(rows.assign(probe_s=seen))
    assert abs(model.gamma - GAMMA) < 4 * model.gamma_se
    assert model.level.noise == pytest.approx(0.07, rel=0.15)
    assert model.level.sd == pytest.approx(0.1, rel=0.25)
    assert model.level.tau_s == pytest.approx(-1 / np.log(PHI), rel=0.4)
    level, truth = np.log(model.factor(seen, rows["at_s"])), np.log(rows["probe_s"])
    assert np.std(level - truth) < 0.8 * 0.07  # nearer the truth than the probe is


def test_a_long_sequence_is_smoothed_in_parts():
    rng, at_s = np.random.default_rng(7), np.arange(1200) * 1.0
    level = np.repeat([-0.1, 0.1, -0.1], 400)
    seen = level + 0.05 * rng.standard_normal(1200)
    found = smoothed(seen, at_s, fit_level(seen, at_s))
    assert np.std(found - level) < 0.02


def test_coefficients_cover_the_truth(model):
    level = (model.probe_s / 0.08) ** GAMMA
    table = model.coefficients().set_index("term")
    truth = {"tokens": 0.05, "llm": 0.1, "job[sequential]": 0.1, "steps[parallel]": 0.01,
             "panel step pixels[sequential]": 0.02, "panel step pixels[parallel]": 0.01}
    z = [(table.loc[term, "seconds"] - seconds * level) / table.loc[term, "se"] for term, seconds in truth.items()]
    assert np.abs(z).max() < 4


def test_samples_agree_with_the_moments(model, jobs):
    draws = model.sample_s(jobs, "parallel", np.random.default_rng(1), draws=4000)
    moments = model.moments(jobs, "parallel")
    assert draws.shape == (4000, len(jobs))
    assert draws.mean() == pytest.approx(moments.mean_s, rel=0.002)
    assert draws.var() / draws.mean() ** 2 == pytest.approx(moments.scv, rel=0.01)
    assert np.mean(draws**3) == pytest.approx(moments.third, rel=0.01)
    assert model.sample_s(jobs, "parallel", np.random.default_rng(1)).shape == (len(jobs),)


def test_factor_and_probes_enter(model, jobs):
    base = model.mean_s(jobs, "sequential")
    slow = model.mean_s(jobs, "sequential", factor=np.full(len(jobs), 1.5), probes=1.0)
    assert np.allclose(slow, (base + 0.17) * 1.5**model.gamma)
    assert model.factor(2 * model.probe_s) == pytest.approx(2)


def test_prediction_intervals_cover_new_runs(model):
    fresh = simulated_rows(np.random.default_rng(8), repeats=1)
    inside = 0
    for method, part in fresh.groupby("method"):
        low, high = model.prediction_interval(part, method, factor=model.factor(part["probe_s"], part["at_s"]))
        inside += int(((part["run_s"] >= low) & (part["run_s"] <= high)).sum())
    share, error = inside / len(fresh), np.sqrt(0.95 * 0.05 / len(fresh))
    assert abs(share - 0.95) < 4 * error


def test_terms_that_do_not_vary_are_left_out_and_not_extrapolated(jobs):
    rows = simulated_rows(np.random.default_rng(5))
    rows = rows[(rows["image_size"] == 128) & (rows["guidance_scale"] > 1)]
    narrow = ServiceTimeModel.fit(rows)
    assert not any("pixels" in term for term in narrow.terms)
    assert narrow.mean_s(jobs[(jobs["image_size"] == 128) & (jobs["guidance_scale"] > 1)], "parallel").min() > 0
    with pytest.raises(ValueError, match="image_size = 96"):
        narrow.mean_s(jobs, "parallel")


def test_without_probes_the_machine_stays_in_the_residual():
    rows = simulated_rows(np.random.default_rng(3))
    blind = ServiceTimeModel.fit(rows.assign(probe_s=1.0))
    assert blind.residual_cv > 1.4 * CV
    assert blind.residual_lag1 > 0.3
    assert lag_correlation(rows["probe_s"], rows["at_s"]) > 0.6


def test_natural_jobs_draw_their_tokens(jobs):
    tokens = pd.DataFrame({"n_panels": 3, "llm_tokens": 16, "tokens_run": [8, 8, 10, 14]})
    model = ServiceTimeModel.fit(simulated_rows(np.random.default_rng(4)), tokens)
    natural = jobs[(jobs["n_panels"] == 3) & (jobs["llm_tokens"] == 16) & (jobs["prompt"] != "")]
    natural = natural.assign(exact_tokens=False)
    as_ten = natural.assign(exact_tokens=True, llm_tokens=10)
    assert np.allclose(model.mean_s(natural, "parallel"), model.mean_s(as_ten, "parallel"))  # 10 is the law's mean
    assert model.moments(natural, "parallel").scv > model.moments(as_ten, "parallel").scv
    draws = model.sample_s(natural, "parallel", np.random.default_rng(0), draws=20_000)
    moments = model.moments(natural, "parallel")
    assert draws.var() / draws.mean() ** 2 == pytest.approx(moments.scv, rel=0.03)
    with pytest.raises(ValueError, match="known: 3, 16"):
        model.mean_s(natural.assign(n_panels=4), "parallel")


def test_json_keeps_the_model(model, jobs, tmp_path):
    again = ServiceTimeModel.from_json(model.to_json(tmp_path / "model.json"))
    one, other = (m.sample_s(jobs, "parallel", np.random.default_rng(2), draws=3) for m in (model, again))
    assert np.array_equal(one, other)
    assert again.moments(jobs, "sequential") == model.moments(jobs, "sequential")


def test_what_it_refuses(model, jobs):
    rows = simulated_rows(np.random.default_rng(3), repeats=1)
    with pytest.raises(ValueError, match="5 rows for"):
        ServiceTimeModel.fit(rows[:5])
    with pytest.raises(ValueError, match="NaN"):
        ServiceTimeModel.fit(rows.assign(run_s=np.nan))
    with pytest.raises(ValueError, match="threads"):
        ServiceTimeModel.fit(rows.assign(threads=[1, 2] * (len(rows) // 2)))
    with pytest.raises(ValueError, match="natural"):
        ServiceTimeModel.fit(rows.assign(exact_tokens=False))
    with pytest.raises(ValueError, match="no method 'joint'"):
        model.mean_s(jobs, "joint")
