"""A log of anybody's: tables simulated by Ciw, which shares no code with the models, and logs that no queue makes."""

import re

import ciw
import numpy as np
import pandas as pd
import pytest

from stlib import paths
from stlib.prediction.check import _holes, check_log, describe_services
from stlib.prediction.job_log import LEAST_JOBS, Log, read_log
from stlib.queueing.simulation import simulate

SERVED = paths.REFERENCE / "served"


def of_ciw(n, services, servers, seed, arrivals=None) -> pd.DataFrame:
    """n jobs through Ciw's nodes one after another: arrival at the first, start and finish at the last."""
    ciw.seed(seed)
    nodes = len(services)
    network = ciw.create_network(
        arrival_distributions=[arrivals or ciw.dists.Exponential(1.0), *[None] * (nodes - 1)],
        service_distributions=services,
        number_of_servers=servers, routing=[[float(j == i + 1) for j in range(nodes)] for i in range(nodes)])
    simulation = ciw.Simulation(network)
    simulation.simulate_until_max_customers(n + 50)  # then the first n have left
    records = pd.DataFrame(simulation.get_all_records()).set_index("id_number").sort_index()
    first, last = (records[records["node"] == node] for node in (1, nodes))
    table = pd.DataFrame({"arrival": first["arrival_date"], "start": last["service_start_date"],
                          "finish": last["service_end_date"], "server": last["server_id"]})
    return table.loc[:n].reset_index(drop=True)


GAMMA = ciw.dists.Gamma(2, 0.8)  # mean 1.6 s, SCV 0.5: with one arrival a second two servers are busy to 0.8


@pytest.fixture(scope="module")
def mg2():
    return of_ciw(2000, [GAMMA], [2], seed=2)


@pytest.fixture
def log(tmp_path):
    """A table, written as CSV and read."""
    def written(table, **columns):
        table.to_csv(tmp_path / "jobs.csv", index=False)
        return read_log(tmp_path / "jobs.csv", columns)

    return written


def told(found, text):
    return next(sentence for sentence in found.sentences if text in sentence)


@pytest.mark.parametrize("named", ["none", "server"])
def test_an_mg2_queue_of_ciw_is_found(log, mg2, named):
    found = check_log(log(mg2, replica=named), slo_s=(3.0,))
    mean, lo, hi, scv, scv_lo, scv_hi = map(float, re.search(
        r"mean (\S+) s \((\S+) to (\S+)\), SCV (\S+) \((\S+) to (\S+)\)", told(found, "service: gamma"))
        .groups())
    assert found.k == 2 and found.law == "gamma" and found.holds, found.sentences
    assert lo <= 1.6 <= hi and scv_lo <= 0.5 <= scv_hi and lo < mean < hi and scv_lo < scv < scv_hi
    assert "queue: M/G/k" in found.sentences and "0.0% of the waiting passed" in told(found, "of the waiting")
    metrics = found.tables["metrics"].set_index("metric")
    assert metrics.index.tolist() == ["mean", "wq", "p50", "p95", "slo_3"]
    np.testing.assert_allclose(metrics["recursion"], metrics["served"], rtol=1e-9)  # Ciw's queue is the model's
    parts = metrics.filter(like="_less_").loc["mean"].sum()
    assert metrics.loc["mean", "served"] - metrics.loc["mean", "formula"] == pytest.approx(parts)
    assert metrics["served"].between(metrics["simulated_lo"], metrics["simulated_hi"]).all()


def test_one_replica_fewer_cannot_carry_it_and_one_more_is_as_ciw_says(log, mg2):
    found = check_log(log(mg2))
    fewer, same, more = found.tables["replicas"].itertuples()
    assert fewer.rho >= 1 and "the queue grows" in told(found, "1 replicas do not carry")
    assert fewer.mean > 10 * same.mean > 10 * more.mean and same.mean_lo < same.mean < same.mean_hi
    gaps, services = np.diff(mg2["arrival"], prepend=0), (mg2["finish"] - mg2["start"]).to_numpy()
    rng, means = np.random.default_rng(13), []
    for _ in range(5):  # Ciw on the same arrivals, with services drawn anew
        drawn = rng.choice(services, len(services))
        again = of_ciw(len(gaps) - 50, [ciw.dists.Sequential(drawn)], [3], 0, ciw.dists.Sequential([*gaps, np.inf]))
        means.append((again["finish"] - again["arrival"]).mean())
    assert abs(np.mean(means) - more.mean) < 4 * (more.mean_hi - more.mean_lo) / 3.92 / np.sqrt(5)


@pytest.mark.parametrize("service, law", [
    (ciw.dists.Deterministic(1.4), "constant"), (ciw.dists.Exponential(0.7), "exponential"),
    (ciw.dists.Lognormal(0.1, 0.7), "lognormal")])
def test_other_laws_are_told_apart(log, service, law):
    found = check_log(log(of_ciw(1000, [service], [2], seed=3)), draws=100)
    assert (found.k, found.law) == (2, law)


def test_a_ks_p_value_is_uniform_though_the_law_is_fitted():
    rng = np.random.default_rng(4)
    p = [describe_services(rng.exponential(2.0, 60), rng)[0] for _ in range(40)]
    p = np.array([laws["ks_p"][0] for laws in p if laws["law"][0] == "exponential"])
    assert len(p) >= 25 and abs(p.mean() - 0.5) < 4 * np.sqrt(1 / 12 / len(p))
    mixed = np.append(rng.exponential(1.0, 300), rng.normal(20, 0.5, 300))
    assert describe_services(mixed, rng)[0]["ks_p"][0] <= 0.01


def test_the_intervals_of_mean_and_scv_cover():
    """Each is to miss in one of twenty: at most 6 of 40, which has a probability of 0.997."""
    rng = np.random.default_rng(12)
    told = [describe_services(rng.gamma(2, 0.8, 300), rng)[2] for _ in range(40)]
    bounds = np.array([re.findall(r"\((\d\S*) to (\S+)\)", one) for one in told], float)
    assert bounds.shape == (40, 2, 2)
    for (lo, hi), true in zip(bounds.transpose(1, 2, 0), (1.6, 0.5), strict=True):
        assert ((lo <= true) & (true <= hi)).sum() >= 34


def test_a_hidden_second_queue_is_seen(log):
    """The log knows the second of two nodes only, and the arrivals at the first."""
    hidden = of_ciw(2000, [ciw.dists.Exponential(1.25), GAMMA], [1, 2], seed=5)
    for columns in ({"replica": "none"}, {}):
        found = check_log(log(hidden, **columns))
        assert found.k == 2 and not found.holds and "a hidden queue" in found.sentences[-1], found.sentences
        assert float(re.match(r"\S+(?=%)", told(found, "of the waiting"))[0]) > 10



def test_a_queue_hidden_in_the_services_is_told(log):
    whole = of_ciw(1000, [GAMMA, ciw.dists.Exponential(1.25)], [2, 1], seed=6)
    found = check_log(log(whole.assign(start=whole["arrival"]).drop(columns="server")), draws=100)
    assert "a queue may be hidden in them" in found.sentences[-1]
    assert "queue: simulate" in found.sentences


@pytest.mark.parametrize("k", [1, 2, 3])
def test_replies_alone_tell_the_replicas(log, k):
    table = of_ciw(1500, [GAMMA], [k], seed=7, arrivals=ciw.dists.Exponential(0.5 * k))
    found = check_log(log(table[["arrival", "finish"]].rename(columns={"finish": "reply_at"})))
    assert found.k == k and found.holds and "inferred from the replies" in told(found, "k =")
    assert found.tables["candidates"]["replicas"][0] == k
    true = (table["finish"] - table["start"]).mean()
    lo, hi = map(float, re.search(r"mean \S+ s \((\S+) to (\S+)\)", told(found, "service: "))
                 .groups())
    assert lo <= true <= hi


def test_replies_of_named_replicas_tell_the_starts(log, mg2):
    found = check_log(log(mg2[["arrival", "finish", "server"]]), draws=100)
    np.testing.assert_allclose(found.tables["services"]["served_s"],
                               np.quantile(mg2["finish"] - mg2["start"], found.tables["services"]["probability"]))


def test_a_queue_per_replica_is_told(log):
    rng = np.random.default_rng(8)
    arrival = rng.exponential(1.0, 2000).cumsum()
    table = simulate(arrival, rng.gamma(2, 0.8, 2000), 2, routing="round_robin")
    found = check_log(log(table))
    assert not found.holds and "each replica has its own queue" in found.sentences[-1]
    assert "which a replica column would show" in check_log(log(table, replica="none")).sentences[-1]


def test_services_are_drawn_within_their_class(log):
    rng = np.random.default_rng(9)
    kind = np.arange(600) % 2
    table = simulate(rng.exponential(1.0, 600).cumsum(), np.where(kind, 0.2, 1.2), 1).assign(kind=kind)
    by_kind, by_none = (check_log(log(table, **{"class": name})).tables["metrics"].set_index("metric").loc["mean"]
                        for name in ("kind", "none"))
    assert by_kind["simulated_hi"] - by_kind["simulated_lo"] < 1e-9  # the class says all
    assert by_none["simulated_hi"] - by_none["simulated_lo"] > 0.1


def test_a_served_run_of_ours_is_understood():
    found = check_log(read_log(SERVED / "cell_1_run_1" / "served.parquet"))
    assert found.k == 1 and found.holds, found.sentences
    assert "start is 'start_s'" in found.sentences[0] and "300 completed jobs" in found.sentences[0]


def forms(table):
    """The same log as others write it, a file's name and a function that writes it."""
    times = ["arrival", "start", "finish"]
    clock = pd.Timestamp("2026-03-02T10:15:58.5")
    stamps = table.assign(**{name: clock + pd.to_timedelta(table[name].round(3), unit="s") for name in times})
    zoned = stamps.assign(**{name: stamps[name].dt.tz_localize("Europe/Vienna") for name in times})
    epochs = table.assign(**{name: (table[name] * 1000).round().astype("int64") + 1772446558500 for name in times})
    return {"seconds.csv": lambda path: table.to_csv(path, index=False),
            "iso.csv": lambda path: zoned.map(lambda one: getattr(one, "isoformat", lambda: one)()).to_csv(path),
            "epochs.csv": lambda path: epochs.sample(frac=1, random_state=0).to_csv(path, index=False),
            "epochs.jsonl": lambda path: epochs.to_json(path, orient="records", lines=True),
            "iso.jsonl": lambda path: stamps.to_json(path, orient="records", lines=True, date_format="iso"),
            "stamps.parquet": zoned.to_parquet, "seconds.parquet": table.to_parquet}


def test_every_form_of_a_log_is_read_alike(tmp_path, mg2):
    table = mg2.head(200)
    expected = table[["arrival", "start", "finish"]] - table["arrival"].min()
    for name, write in forms(table).items():
        write(tmp_path / name)
        jobs = read_log(tmp_path / name).jobs
        np.testing.assert_allclose(jobs[["arrival_s", "start_s", "finish_s"]], expected, atol=2e-3, err_msg=name)
        assert jobs["replica"].nunique() == 2


def test_columns_and_units_are_found_or_stated(log, mg2):
    table = mg2.head(100)
    found = log(table.set_axis(["Submitted At", "service_start_date", "ended", "GPU"], axis=1))
    assert found.columns == {"arrival": "Submitted At", "start": "service_start_date", "finish": "ended",
                             "replica": "GPU"}
    odd = log(table.set_axis(["a", "b", "c", "d"], axis=1), arrival="a", start="b", finish="c", replica="none")
    pd.testing.assert_frame_equal(odd.jobs, found.jobs.drop(columns="replica"))
    in_ms = (table * 1000).set_axis(["arrival_ms", "start_ms", "finish_ms", "server"], axis=1)
    np.testing.assert_allclose(log(in_ms).jobs["finish_s"], found.jobs["finish_s"])


def test_jobs_that_did_not_complete_are_counted_and_left_out(log, mg2):
    table = mg2.head(200).assign(status=["ok", "failed"] * 100)
    table.loc[[0, 2], "finish"] = np.nan
    read = log(table)
    assert len(read.jobs) == 98 and read.left_out == 102
    assert "98 completed jobs" in (told(check_log(read, draws=40), "102 others left out"))


def changed(table, i, **cells):
    table = table.copy()
    for name, value in cells.items():
        table.loc[i, name] = value
    return table


def local(table):
    """With a local clock that is set back an hour after 100 s, stamped without a zone."""
    times = ["arrival", "start", "finish"]
    back = table.assign(**{name: table[name] - 3600 * (table["arrival"] > 100) for name in times})
    return back.assign(**{name: (pd.Timestamp("2026-10-25T02:58:20") + pd.to_timedelta(back[name], unit="s"))
                          .dt.strftime("%Y-%m-%dT%H:%M:%S.%f") for name in times})


REFUSED = {
    "a negative wait": (lambda t: changed(t, 7, start=t.arrival[7] - 5), r"line 9, column 'start': .* 5 s before the "
                        r"arrival of the job: take both from one clock, in UTC"),
    "a negative service": (lambda t: changed(t, 7, finish=t.start[7] - 3600), r"line 9, column 'finish': .* 3600 s "
                           "before the start of the job.*daylight saving"),
    "two jobs at once": (lambda t: t.assign(server=1),
                         r"line \d+, column 'start'.*one job at a time: give each of its"),
    "daylight saving": (local, r"line \d+, column 'arrival': '2026-10-25T02.* s before the arrival above it: a local "
                        "clock set back.*write the times in UTC"),
    "durations": (lambda t: t.assign(finish=t.finish - t.start), "a column of durations holds no times"),
    "no time": (lambda t: changed(t.astype(object), 5, arrival="soon"), "line 7, column 'arrival': 'soon'"),
    "another clock": (lambda t: t.assign(finish=t.finish + 1.7e9), r"column 'finish'.*as the first one is"),
    "two units": (lambda t: t.rename(columns={"arrival": "arrival_s", "finish": "finish_ms"}), "state the units"),
    "no finish": (lambda t: t[["arrival", "start"]], "needs arrivals, and finishes or replies"),
    "few jobs": (lambda t: t.head(LEAST_JOBS - 1), f"has 50 completed jobs in 50 rows .*give at least {LEAST_JOBS}"),
    "none": (lambda t: t.head(0), "has no times in the columns"),
    "an unknown outcome": (lambda t: t.assign(status="lost"), "has 0 completed jobs in 300 rows"),
}


@pytest.mark.parametrize("change, message", REFUSED.values(), ids=REFUSED)
def test_what_no_queue_does_is_refused_with_its_place_and_a_remedy(log, mg2, change, message):
    with pytest.raises(ValueError, match="(?s)" + message):
        log(change(mg2.head(300)))


def test_other_files_and_columns_are_refused(log, mg2, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"arrival": 1')
    (tmp_path / "bad.parquet").write_text("arrival")
    for name, message in (("bad.jsonl", "is no jsonl file"), ("bad.parquet", "is no parquet file"),
                          ("none.parquet", "is no parquet file"), ("none.csv", "No such file"),
                          ("jobs.xlsx", "must end in one of .csv")):
        with pytest.raises(ValueError, match=message):
            read_log(tmp_path / name)
    with pytest.raises(ValueError, match="has 0 columns 'begun', for start it must have one"):
        log(mg2, start="begun")
    with pytest.raises(ValueError, match="replicas = 1: replicas are named, 2 of them; state at least 2"):
        check_log(log(mg2), 1)
    with pytest.raises(ValueError, match="some replies would come before their service"):
        check_log(log(mg2[["arrival", "finish"]]), 1)


def test_a_gap_in_a_log_is_named_and_chance_is_not(log, mg2):
    cut = mg2[(mg2["arrival"] < 500) | (mg2["arrival"] > 560)]
    found = check_log(log(cut), draws=40)
    line = 1 + int((mg2["arrival"] < 500).sum())
    assert f"between lines {line} and {line + 1}, longer than chance allows" in told(found, "no arrivals for 6")
    rng = np.random.default_rng(10)
    steady = [rng.exponential(1.0, 400) for _ in range(40)] + [rng.gamma(0.3, 3.0, 400) for _ in range(40)]
    false = [bool(_holes(pd.DataFrame({"arrival_s": gaps.cumsum()}))) for gaps in steady]
    assert sum(false) <= 3


def test_the_true_model_holds_in_most_logs():
    """It is to fail in one of twenty: at most 5 of 25, which has a probability of 0.998."""
    rng, fails = np.random.default_rng(11), 0
    for _ in range(25):
        table = simulate(rng.exponential(1.0, 150).cumsum(), rng.gamma(2, 0.35, 150), 1)
        jobs = table[["arrival_s", "start_s", "finish_s", "reply_s"]]
        fails += not check_log(Log(jobs, {"start": "start_s"}, 0), draws=100).holds
    assert fails <= 5
