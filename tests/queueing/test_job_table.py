import numpy as np
import pandas as pd
import pytest

from stlib.queueing.job_table import JOB_COLUMNS, OUTCOMES, job_metrics, job_table, reduce_runs

NAN = np.nan


def small_table(**changes):
    columns = {
        "job_id": [0, 1, 2, 3, 4], "workload": "story", "scheduled_s": [0.0, 1, 2, 3, 4],
        "arrival_s": [0.5, 1, 2, 3, 4], "start_s": [0.5, 3, 4, NAN, NAN], "finish_s": [3.0, 4, 9, NAN, NAN],
        "reply_s": [3.5, 4, 9, 3, 8], "service_s": [2.5, 1, 5, NAN, NAN], "probe_s": NAN, "replica": [0, 0, 0, -1, -1],
        "method": ["joint", "parallel", "joint", None, None], "n_outstanding": [1, 2, 2, 0, 0], "attempt": 1,
        "outcome": ["completed", "completed", "failed", "rejected", "timed_out"],
    }  # fmt: skip
    return job_table(columns | changes)


def test_table_has_the_columns_and_dtypes():
    table = small_table()
    assert table.dtypes.astype(str).to_dict() == JOB_COLUMNS
    assert list(table["outcome"].cat.categories) == list(OUTCOMES)
    assert table["method"].isna().tolist() == [False] * 3 + [True] * 2


def test_table_refuses_other_columns_and_outcomes():
    with pytest.raises(ValueError, match=r"missing or unknown: \['colour'\]"):
        small_table(colour="red")
    with pytest.raises(ValueError, match="missing or unknown"):
        job_table({"job_id": [1]})
    with pytest.raises(ValueError, match="'lost' is none of"):
        small_table(outcome=["completed"] * 4 + ["lost"])


def test_writing_to_one_time_leaves_its_twin():
    times = pd.Series([0.0, 1, 2, 3, 4])
    table = small_table(scheduled_s=times, arrival_s=times)
    table.loc[2, "arrival_s"] = 2.5
    assert table["scheduled_s"].tolist() == times.tolist() == [0, 1, 2, 3, 4]


def test_metrics_by_hand():
    """Responses 3.5 and 3 s, waits 0 and 2 s; the failed, rejected and timed-out jobs count for the SLO only."""
    metrics = job_metrics(small_table(), slo_s=[3, 10], percentiles=(0, 50, 90))
    assert metrics[["mean", "wq", "p0", "p50", "p90"]].tolist() == pytest.approx([3.25, 1, 3, 3.25, 3.45])
    assert metrics[["slo_3", "slo_10"]].tolist() == [0.2, 0.4]
    assert metrics[["offered", *OUTCOMES]].tolist() == [5, 2, 1, 1, 0, 1]


def test_no_completed_job_gives_nan_but_an_attainment():
    metrics = job_metrics(small_table(outcome="failed"), slo_s=[3])
    assert metrics[["mean", "wq", "p50", "p95"]].isna().all()
    assert metrics["slo_3"] == 0


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="empty"):
        job_metrics(small_table().head(0))
    for options in ({"percentiles": [101]}, {"slo_s": [0]}, {"slo_s": [NAN]}):
        with pytest.raises(ValueError, match="must lie in"):
            job_metrics(small_table(), **options)


def test_rows_of_runs_are_numpys_percentiles():
    response = np.random.default_rng(0).exponential(1, (20, 31))
    reduced = reduce_runs(response, response, [1], (50, 95, 99.9))
    for p in (50, 95, 99.9):
        np.testing.assert_allclose(reduced[f"p{p:g}"], np.percentile(response, p, axis=1))
