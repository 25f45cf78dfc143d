"""The service-time costs on rows whose law is known, and what it refuses."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from stlib.experiment import Costs
from stlib.experiment.design import full_factorial
from stlib.experiment.machine import fit_level, lag_correlation, smoothed
from stlib.serving.workloads import StoryWorkload

CV, GAMMA, PHI = 0.07, 0.9, 0.8
LEVELS = {"method": ["sequential", "parallel"], "n_panels": [1, 2, 4], "steps": [6, 12, 20], "llm_tokens": [4, 16],
          "prompt": ["", "a fox"], "guidance_scale": [1.0, 2.5], "image_size": [96, 128]}


NATURAL = {"prompt": "a cat", "steps": 8, "method": "parallel"}  # of runs for the law of tokens


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
def costs():
    return Costs.fit(simulated_rows(np.random.default_rng(3)))


@pytest.fixture(scope="module")
def jobs():
    grid = {"n_panels": [1, 3, 4], "steps": [8, 16], "llm_tokens": [8, 16], "prompt": ["", "a cat"],
            "guidance_scale": [2.5, 1.0], "image_size": [128, 96]}
    return full_factorial(grid).assign(exact_tokens=lambda row: row["prompt"] != "")


@pytest.mark.parametrize("method", LEVELS["method"])
def test_means_of_unseen_combinations_are_found(costs, jobs, method):
    level = costs.probe_s / 0.08  # the costs is stated at the experiment's mean factor
    truth = true_mean_s(jobs, method) * level**GAMMA
    assert np.abs(costs.mean_s(jobs, method) / truth - 1).max() < 0.04
    moments = costs.moments(jobs, method)
    assert abs(moments.mean_s - truth.mean()) < 4 * moments.mean_se_s
    assert moments.mean_se_s < 0.01 * moments.mean_s


def test_the_machine_and_the_residual_are_found(costs):
    assert abs(costs.gamma - GAMMA) < 4 * costs.gamma_se
    assert costs.residual_cv == pytest.approx(CV, rel=0.1)
    assert abs(costs.residual_lag1) < 4 / np.sqrt(costs.n_rows)
    assert np.exp(-1 / costs.level.tau_s) == pytest.approx(PHI, abs=0.1)  # the rows are a second apart
    at_s = np.arange(300) * 1.0
    path = costs.factor_path(np.tile(at_s, (2000, 1)), np.random.default_rng(0))
    assert path.shape == (2000, 300) and costs.factor_path(at_s[:5], np.random.default_rng(0)).shape == (5,)
    assert np.std(np.log(path)) == pytest.approx(costs.level.sd, rel=0.03)
    assert np.log(path).mean() == pytest.approx(0, abs=4 * np.log(path).mean(axis=1).std() / np.sqrt(2000))


def test_noise_of_the_probe_does_not_bias_its_exponent():
    rng = np.random.default_rng(6)
    rows = simulated_rows(rng)
    seen = rows["probe_s"] * np.exp(0.07 * rng.standard_normal(len(rows)))
    costs = Costs.fit(rows.assign(probe_s=seen))
    assert abs(costs.gamma - GAMMA) < 4 * costs.gamma_se
    assert costs.level.noise == pytest.approx(0.07, rel=0.15)
    assert costs.level.sd == pytest.approx(0.1, rel=0.25)
    assert costs.level.tau_s == pytest.approx(-1 / np.log(PHI), rel=0.4)
    level, truth = np.log(costs.factor(seen, rows["at_s"])), np.log(rows["probe_s"])
    assert np.std(level - truth) < 0.8 * 0.07  # nearer the truth than the probe is


def test_a_long_sequence_is_smoothed_in_parts():
    rng, at_s = np.random.default_rng(7), np.arange(1200) * 1.0
    level = np.repeat([-0.1, 0.1, -0.1], 400)
    seen = level + 0.05 * rng.standard_normal(1200)
    found = smoothed(seen, at_s, fit_level(seen, at_s))
    assert np.std(found - level) < 0.02


def test_coefficients_cover_the_truth(costs):
    level = (costs.probe_s / 0.08) ** GAMMA
    table = pd.DataFrame({"seconds": costs.beta, "se": np.sqrt(np.diag(costs.covariance))}, index=costs.terms)
    truth = {"tokens": 0.05, "llm": 0.1, "job[sequential]": 0.1, "steps[parallel]": 0.01,
             "panel step pixels[sequential]": 0.02, "panel step pixels[parallel]": 0.01}
    z = [(table.loc[term, "seconds"] - seconds * level) / table.loc[term, "se"] for term, seconds in truth.items()]
    assert np.abs(z).max() < 4


def test_samples_agree_with_the_moments(costs, jobs):
    draws = costs.sample_s(jobs, "parallel", np.random.default_rng(1), draws=4000)
    moments = costs.moments(jobs, "parallel")
    assert draws.shape == (4000, len(jobs))
    assert draws.mean() == pytest.approx(moments.mean_s, rel=0.002)
    assert draws.var() / draws.mean() ** 2 == pytest.approx(moments.scv, rel=0.01)
    assert np.mean(draws**3) == pytest.approx(moments.third, rel=0.01)
    assert costs.sample_s(jobs, "parallel", np.random.default_rng(1)).shape == (len(jobs),)


def test_the_factor_enters(costs, jobs):
    base = costs.mean_s(jobs, "sequential")
    slow = costs.mean_s(jobs, "sequential", factor=np.full(len(jobs), 1.5))
    assert np.allclose(slow, base * 1.5**costs.gamma) and costs.probe_cost_s == pytest.approx(0.17)
    assert costs.factor(2.2 * costs.probe_s, reference_s=1.1 * costs.probe_s) == pytest.approx(2)
    assert costs.factor(2 * costs.probe_s) == pytest.approx(2)


def test_prediction_intervals_cover_new_runs(costs):
    fresh = simulated_rows(np.random.default_rng(8), repeats=1)
    inside = 0
    for method, part in fresh.groupby("method"):
        factor = costs.factor(part["probe_s"], part["at_s"])
        draws = costs.sample_s(part, method, np.random.default_rng(0), draws=4000, factor=factor)
        low, high = np.quantile(draws, [0.025, 0.975], axis=0)
        inside += int(((part["run_s"] >= low) & (part["run_s"] <= high)).sum())
    share, error = inside / len(fresh), np.sqrt(0.95 * 0.05 / len(fresh))
    assert abs(share - 0.95) < 4 * error


def test_terms_that_do_not_vary_are_left_out_and_not_extrapolated(jobs):
    rows = simulated_rows(np.random.default_rng(5))
    rows = rows[(rows["image_size"] == 128) & (rows["guidance_scale"] > 1)]
    narrow = Costs.fit(rows)
    assert not any("pixels" in term for term in narrow.terms)
    assert narrow.mean_s(jobs[(jobs["image_size"] == 128) & (jobs["guidance_scale"] > 1)], "parallel").min() > 0
    with pytest.raises(ValueError, match="image_size = 96"):
        narrow.mean_s(jobs, "parallel")


def test_without_probes_the_machine_stays_in_the_residual():
    rows = simulated_rows(np.random.default_rng(3))
    blind = Costs.fit(rows.assign(probe_s=1.0))
    assert blind.residual_cv > 1.4 * CV
    assert blind.residual_lag1 > 0.3
    assert lag_correlation(rows["probe_s"], rows["at_s"]) > 0.6


def test_natural_jobs_draw_their_tokens(jobs):
    tokens = pd.DataFrame({"n_panels": 3, "llm_tokens": 16, "tokens_run": [8, 8, 10, 14]}).assign(**NATURAL)
    costs = Costs.fit(simulated_rows(np.random.default_rng(4)), tokens)
    natural = jobs[(jobs["n_panels"] == 3) & (jobs["llm_tokens"] == 16) & (jobs["prompt"] != "")]
    natural = natural.assign(exact_tokens=False)
    as_ten = natural.assign(exact_tokens=True, llm_tokens=10)
    assert np.allclose(costs.mean_s(natural, "parallel"), costs.mean_s(as_ten, "parallel"))  # 10 is the law's mean
    assert costs.moments(natural, "parallel").scv > costs.moments(as_ten, "parallel").scv
    draws = costs.sample_s(natural, "parallel", np.random.default_rng(0), draws=20_000)
    moments = costs.moments(natural, "parallel")
    assert draws.var() / draws.mean() ** 2 == pytest.approx(moments.scv, rel=0.03)
    with pytest.raises(ValueError, match="known: 3, 16"):
        costs.mean_s(natural.assign(n_panels=4), "parallel")


def test_a_method_that_ends_early_draws_its_steps(jobs):
    """Its costs are those of the steps it ran; how many it will run is a law of its own."""
    rng = np.random.default_rng(8)
    rows = simulated_rows(rng).assign(panel_steps_run=lambda row: row["n_panels"] * row["steps"])
    early = rows[rows["method"] == "parallel"].copy()
    ran = rng.integers(3, early["steps"] + 1)
    shorter = early.assign(steps=ran)
    early["run_s"] *= true_mean_s(shorter, "parallel") / true_mean_s(early, "parallel")
    early = early.assign(method="parallel+exit", panel_steps_run=early["n_panels"] * ran)
    counts = pd.DataFrame({"n_panels": 3, "steps": 16, "llm_tokens": 16, "prompt": "", "method": "parallel+exit",
                           "panel_steps_run": np.repeat([15, 24, 30, 48], 30)})
    plain = counts.assign(method="parallel", panel_steps_run=48)
    costs = Costs.fit(pd.concat([rows, early]), pd.concat([counts, plain]))
    assert set(costs.counts) == {"panel_steps_run[parallel+exit]"}
    some = jobs[(jobs["n_panels"] == 3) & (jobs["steps"] == 16)]
    level = costs.probe_s / 0.08
    assert np.allclose(costs.mean_s(some, "parallel") / true_mean_s(some, "parallel") / level**GAMMA, 1, atol=0.04)
    means = [true_mean_s(some.assign(steps=n / 3), "parallel") for n in (15, 24, 30, 48)]
    assert np.allclose(costs.mean_s(some, "parallel+exit") / np.mean(means, axis=0) / level**GAMMA, 1, atol=0.04)
    assert costs.moments(some, "parallel+exit").scv > costs.moments(some, "parallel").scv + 0.02
    both = costs.mean_s(some, np.where(np.arange(len(some)) % 2, "parallel", "parallel+exit"))
    assert np.allclose(both[1::2], costs.mean_s(some, "parallel")[1::2])
    assert np.allclose(both[::2], costs.mean_s(some, "parallel+exit")[::2])
    job = some.iloc[0].to_dict()
    assert costs.estimate(job, "parallel+exit") == pytest.approx(costs.mean_s(some, "parallel+exit")[0])
    with pytest.raises(ValueError, match="known: 3, 16"):
        costs.mean_s(jobs, "parallel+exit")


def test_json_keeps_the_model(costs, jobs, tmp_path):
    again = Costs.from_json(costs.to_json(tmp_path / "costs.json"))
    one, other = (m.sample_s(jobs, "parallel", np.random.default_rng(2), draws=3) for m in (costs, again))
    assert np.array_equal(one, other)
    assert again.moments(jobs, "sequential") == costs.moments(jobs, "sequential")


def test_what_it_refuses(costs, jobs):
    rows = simulated_rows(np.random.default_rng(3), repeats=1)
    with pytest.raises(ValueError, match="5 rows for"):
        Costs.fit(rows[:5])
    with pytest.raises(ValueError, match="NaN"):
        Costs.fit(rows.assign(run_s=np.nan))
    with pytest.raises(ValueError, match="threads"):
        Costs.fit(rows.assign(threads=[1, 2] * (len(rows) // 2)))
    with pytest.raises(ValueError, match="natural"):
        Costs.fit(rows.assign(exact_tokens=False))
    with pytest.raises(ValueError, match="unknown method of the costs 'joint'"):
        costs.mean_s(jobs, "joint")


def test_an_estimate_is_the_mean_of_the_job_and_goes_beyond_the_fitted_range(costs, jobs):
    means = costs.mean_s(jobs, "parallel")
    assert np.allclose([costs.estimate(job, "parallel") for job in jobs.to_dict("records")], means)
    job = jobs.iloc[0].to_dict()
    with pytest.raises(ValueError, match="image_size = 512"):
        costs.mean_s(jobs.assign(image_size=512), "parallel")
    assert costs.estimate(job | {"image_size": 512}, "parallel") > 4 * costs.estimate(job, "parallel")
    with pytest.raises(ValueError, match="unknown method of the costs 'joint'"):
        costs.estimate(job, "joint")


def test_natural_jobs_beyond_the_measured_counts_are_estimated_by_the_nearest(jobs):
    tokens = pd.DataFrame({"n_panels": [3, 3, 3, 3, 1, 1], "llm_tokens": 16, "tokens_run": [8, 8, 10, 14, 3, 4]})
    tokens = tokens.assign(**NATURAL)
    costs = Costs.fit(simulated_rows(np.random.default_rng(4)), tokens)
    job = jobs[jobs["prompt"] != ""].iloc[0].to_dict() | {"exact_tokens": False, "n_panels": 4, "llm_tokens": 20}
    assert costs.estimate(job, "parallel") == pytest.approx(
        costs.estimate(job | {"exact_tokens": True, "llm_tokens": 10}, "parallel"))


def test_natural_jobs_without_any_law_are_estimated_by_their_limit(costs, jobs):
    job = jobs[jobs["prompt"] != ""].iloc[0].to_dict()
    assert costs.estimate(job | {"exact_tokens": False}, "parallel") == costs.estimate(job, "parallel")


def test_a_size_left_open_is_refused_by_name(costs, jobs):
    with pytest.raises(ValueError, match="image_size = 'auto'"):
        costs.mean_s(jobs.assign(image_size="auto"), "parallel")


def test_the_residual_of_one_process_lacks_the_variance_between_them():
    rng = np.random.default_rng(11)
    rows = simulated_rows(rng).reset_index(drop=True)
    process = np.arange(len(rows)) // 24
    rows = rows.assign(process=process, run_s=rows["run_s"] * np.exp(0.05 * rng.standard_normal(40)[process % 40]))
    costs = Costs.fit(rows)
    assert costs.process_sd == pytest.approx(0.05, rel=0.5)
    within = replace(costs, residual=costs.residual_within)
    assert within.residual_cv**2 == pytest.approx(costs.residual_cv**2 - costs.process_sd**2, rel=0.01)


def test_a_term_that_was_fitted_apart_is_paid_where_the_job_has_it(costs, jobs):
    more = replace(costs, terms=(*costs.terms, "long prompt"), beta=np.append(costs.beta, 0.004),
                   covariance=np.pad(costs.covariance, (0, 1)))
    job = jobs[jobs["prompt"] != ""].iloc[0].to_dict()
    assert more.estimate(job, "parallel") == costs.estimate(job, "parallel")
    assert more.estimate(job | {"prompt_tokens": 116}, "parallel") - costs.estimate(job, "parallel") \
        == pytest.approx(100 * 0.004)
    assert more.moments(jobs.assign(prompt_tokens=9), "parallel") == costs.moments(jobs, "parallel")


def test_other_files_are_no_costs(tmp_path):
    for text in ("", "{}", "[1]", '{"speed": {}}'):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ValueError, match=r"other.json holds no costs of this version"):
            Costs.from_json(tmp_path / "other.json")


def test_beyond_the_replicas_measured_the_last_speed_holds(costs):
    table = pd.DataFrame({"method": "parallel", "busy": [1, 2], "speed": [1, 0.8], "se": [0, 0.01],
                          "probe_ratio": [1, 1.5]})
    known = costs.with_speed(table, dispatch_s=0.004)
    assert np.allclose(known.busy_speed("parallel", 4), [1, 1, 0.8, 0.8, 0.8])
    assert all(np.allclose(known.busy_speed(method, 1), [1, 1]) for method in ("parallel", "sequential"))
    assert known.busy_speed_se("parallel", 3) == 0.01 and known.busy_speed_se("sequential", 1) == 0
    with pytest.raises(ValueError, match="'sequential'"):
        known.busy_speed("sequential", 2)


def test_a_picture_costs_by_its_pixels():
    job = {"prompt": "", "n_panels": 1, "guidance_scale": 1.0, "tokens_run": 0, "panel_steps_run": 4}
    terms = StoryWorkload.terms(job | {"image_size": np.array([64, "96x64", "128x32"], object)})
    assert np.allclose(terms["panel pixels"] / terms["panels"], [1 / 4, 3 / 8, 1 / 4])
    ranged = StoryWorkload.ranged({"image_size": ["64x256", 64], "guidance_scale": 1.0})
    assert np.allclose(ranged["image_size"], [128, 64])
    assert StoryWorkload.terms(job | {"image_size": "64x256"})["panel pixels"] == 1
