"""One reader of times for every door: what it reads, and what it refuses with file, line, cell and remedy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stlib.queueing.arrivals import Trace, arrival_process
from stlib.queueing.simulation import simulate
from stlib.queueing.times import UNITS


@pytest.fixture
def write(tmp_path):
    def written(*lines):
        path = tmp_path / "trace.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return written


CLOCKS = {
    "compact": (["20260302101558", "20260302101559", "20260302101600", "20260302101602"], [0, 1, 2, 4]),
    "compact, over midnight": (["20260228235959", "20260301000001"], [0, 2]),
    "compact with a fraction": (["20260302101558.25", "20260302101559.5"], [0, 1.25]),
    "compact with milliseconds": (["20260302101558250", "20260302101559500"], [0, 1.25]),
    "epoch s": (["1764158400.1", "1764158400.6", "1764158402.1"], [0, 0.5, 2]),
    "epoch s of 2001": (["1000000000", "1000000003"], [0, 3]),
    "epoch ms": (["1772446558123", "1772446558623", "1772446560123"], [0, 0.5, 2]),
    "epoch us": (["1772446558123456", "1772446558623456"], [0, 0.5]),
    "epoch ns": (["1772446558123456789", "1772446558623456789"], [0, 0.5]),
    "ISO 8601": (["2026-03-02T10:15:58Z", "2026-03-02 10:16:00.5"], [0, 2.5]),
    "ISO 8601, compact": (["20260302T101558", "20260302T101600.5"], [0, 2.5]),
    "seconds": (["0.5", "0.5", " 2.75 ", "1e2", "19999999"], [0.5, 0.5, 2.75, 100, 19999999]),
}


@pytest.mark.parametrize("cells, seconds", CLOCKS.values(), ids=CLOCKS)
def test_every_clock_is_read_as_seconds(write, cells, seconds):
    trace = Trace.read(write("stamp,tokens", *(f"{cell},7" for cell in cells)))
    assert trace.arrival_s == pytest.approx(seconds, abs=1e-6)
    assert trace.jobs.to_dict("list") == {"tokens": [7] * len(cells)}


@given(st.floats(9.5e8, 4.1e9), st.sampled_from(list(UNITS)), st.lists(st.floats(0, 1e5), min_size=1, max_size=5))
def test_an_epoch_of_any_unit_gives_the_same_gaps(tmp_path_factory, start, unit, gaps):
    seconds = np.cumsum([0, *gaps])
    path = tmp_path_factory.mktemp("epochs") / "trace.csv"
    path.write_text("\n".join(["time", *(f"{(start + s) * UNITS[unit]:.6f}" for s in seconds)]))
    for stated in (None, unit):
        assert Trace.read(path, unit=stated).arrival_s == pytest.approx(seconds, abs=2e-6)


def test_a_stated_unit_counts(write):
    for name, unit in (("time", "ms"), ("time_ms", None), ("Time [ms]", None), ("time_s", "ms"), ("time_us", "ms")):
        assert Trace.read(write(name, "0", "500", "1500"), unit=unit).arrival_s.tolist() == [0, 0.5, 1.5]
    assert Trace.read(write("time", "0", "30000000"), unit="s").arrival_s.tolist() == [0, 3e7]
    assert Trace.read(write("time_ms", "0", "2000"), unit="s").arrival_s.tolist() == [0, 2000]
    days = [0, 947e6, 2.6e9]  # milliseconds of a month pass through the epochs in seconds
    assert Trace.read(write("time", *map(str, days)), unit="ms").arrival_s.tolist() == [day / 1e3 for day in days]


REFUSED = {  # the cells of the column `time`: what the message must hold, beside file and column
    "US form": (["8/15/2025 5:12:14.121000 PM"], r"line 2.*'8/15/2025 5:12:14.121000 PM'.*ISO 8601.*YYYYMMDDhhmmss"),
    "a clock without a day": (["0:00:01.750"], "line 2.*'0:00:01.750'"),
    "thousands": (["0", '"1,000.5"'], "line 3.*'1,000.5'.*no other separators"),
    "decimal comma": (['"0,5"'], "line 2.*'0,5'"),
    "not available": (["0", "N/A"], "line 3.*'N/A' is no finite time"),
    "a word pandas takes for a time": (["now"], "line 2.*'now'"),
    "underscores": (["1_000"], "line 2.*'1_000'"),
    "beyond a float": (["1e400"], "line 2.*'1e400' is no finite time"),
    "month 13": (["20261302101558"], "line 2.*'20261302101558'"),
    "minute 61 later": (["20260302101558", "20260302106159"], "line 3.*'20260302106159'.*in YYYYMMDDhhmmss"),
    "a compact stamp of 1999": (["19990101101558"], "line 2.*'19990101101558'.*state the unit"),
    "dates": (["20260302", "20260303"], "line 2.*'20260302'.*state the unit"),
    "no epoch": (["5e9", "6e9"], "line 2.*'5e9'.*state the unit of the numbers: unit="),
    "milliseconds of a day": (["0", "86400000"], "line 3.*'86400000'.*as the first one is.*unit=.*_ms"),
    "epochs of two units": (["1764158400", "1764158400600"], "line 3.*in an epoch in s, as the first one is"),
    "an epoch after seconds": (["0", "1764158400"], "line 3.*'1764158400'.*from the run's start"),
    "seconds after an epoch": (["1764158400", "5"], "line 3.*'5'.*an epoch in s"),
    "a compact stamp after ISO": (["2026-03-02T10:15:58", "20260302101559"], "line 3.*in ISO 8601"),
    "ISO after a compact stamp": (["20260302101558", "2026-03-02T10:15:59"], "line 3.*in YYYYMMDDhhmmss"),
    "a number after ISO": (["2026-03-02T10:15:58", "5"], "line 3.*in ISO 8601"),
    "an unsorted epoch": (["1764158401", "1764158400"], "line 3.*'1764158400' is .*earlier than the one before"),
    "an empty cell": (["0", "", "1"], "line 3.*'' is no finite time"),
}


@pytest.mark.parametrize("cells, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_one_clock_is_refused_with_its_own_text(write, cells, message):
    with pytest.raises(ValueError, match="(?s)trace.csv, .*" + message) as error:
        Trace.read(write("time", *cells), "time")
    assert "column 'time'" in str(error.value)


@pytest.mark.parametrize("cell, unit, message", [
    ("1764158400.5", "ms", "is an epoch in s, not ms"), ("1764158400500", "s", "is an epoch in ms, not s"),
    ("2026-03-02T10:15:58Z", "s", "leave the unit out"), ("20260302101558", "s", "leave the unit out"),
    ("1", "h", "unit = 'h' must be one of s, ms, us, ns"), ("1e9", "s", None), ("1e18", "s", "an epoch in ns, not s"),
    ("1e20", "s", "'1e20' is no finite time"),
])
def test_a_stated_unit_is_checked(write, cell, unit, message):
    path = write("time", cell)
    if message is None:
        assert Trace.read(path, unit=unit).arrival_s.tolist() == [0]
    else:
        with pytest.raises(ValueError, match=message):
            Trace.read(path, unit=unit)


@pytest.mark.parametrize("header", ["x,Timestamp [UTC]", "x,ARRIVAL_S", "job_id,stamp", "x,arrival time", ",time"])
def test_the_time_column_is_found_by_its_name(write, header):
    assert Trace.read(write(header, "7,1.5", "8,2.5")).arrival_s.tolist() == [1.5, 2.5]


@pytest.mark.parametrize("header, column, message", [
    ("job_id,x", None, r"must have one column called time.*time_column.*\['job_id', 'x'\]"),
    ("time,timestamp", None, r"must have one.*\['time', 'timestamp'\]"), ("time,time", None, "must have one"),
    ("time,time", "time", "must have one column 'time', not 2"),
    ("time,x", "Time", r"must have one column 'Time', not 0.*\['time', 'x'\]"),
    ("0,1", None, "must have one"),
])
def test_a_column_is_never_taken_by_its_place(write, header, column, message):
    with pytest.raises(ValueError, match=message):
        Trace.read(write(header, "1,2", "3,4"), column)


def test_a_job_table_as_csv_is_a_trace(tmp_path):
    rng = np.random.default_rng(3)
    table = simulate(rng.exponential(2.0, 50).cumsum(), np.ones(50), 2)
    for index in (True, False):
        table.to_csv(tmp_path / "jobs.csv", index=index)
        process = arrival_process(None, str(tmp_path / "jobs.csv"))
        assert process.arrival_s == pytest.approx(table["arrival_s"])
    chosen = arrival_process(None, str(tmp_path / "jobs.csv"), time_column="start_s")
    assert chosen.arrival_s == pytest.approx(table["start_s"])


def test_lines_are_counted_in_the_file(write):
    path = write("time,prompt", '0,"a fox', 'in the snow"', "1,x", "late,y")
    with pytest.raises(ValueError, match=r"line 5.*'late'"):
        Trace.read(path)
    with pytest.raises(ValueError, match="line 2, saw 3"):
        Trace.read(write("time,x", "1,2,3"))


def test_what_is_no_csv_file_is_a_value_error(tmp_path):
    (tmp_path / "utf16.csv").write_bytes("time\n1\n".encode("utf-16"))
    for name in ("missing.csv", "utf16.csv", "."):
        with pytest.raises(ValueError, match="a trace is a CSV file with a header"):
            Trace.read(tmp_path / name)


PUBLISHED = {  # the first lines of traces as they are published: header and lines, arrivals, a column of the jobs
    "Azure LLM 2023": ("azure.csv", ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:17:03.9799600,4808,10",
                                     "2023-11-16 18:17:04.0319600,3180,8", "2023-11-16 18:17:04.0781490,110,27"],
                       None, [0, 0.052, 0.098189], {"GeneratedTokens": [10, 8, 27]}),
    "Azure LLM 2024": ("azure.csv", ["TIMESTAMP,ContextTokens,GeneratedTokens",
                                     "2024-05-10 00:00:00.009930+00:00,2162,5",
                                     "2024-05-10 00:00:00.017335+00:00,2399,6"],
                       None, [0, 0.007405], {"ContextTokens": [2162, 2399]}),
    "Azure Functions 2021": ("functions.csv", ["app,func,end_timestamp,duration", "a,f,10.5,0.5", "b,g,11.25,4.25",
                                               "a,h,12,1"], None, [0, 3, 4], {"app": ["b", "a", "a"]}),
    "BurstGPT": ("burst.csv", ["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
                               "5,ChatGPT,472,18,490,Conversation log", "45,ChatGPT,1087,230,1317,Conversation log",
                               "100000,GPT-4,417,276,693,Conversation log"], "s", [5, 45, 100_000],
                 {"Model": ["ChatGPT", "ChatGPT", "GPT-4"]}),
    "Mooncake": ("mooncake.jsonl", ['{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}',
                                    '{"timestamp": 27482, "input_length": 7, "output_length": 9, "hash_ids": [0]}',
                                    '{"timestamp": 3599000, "input_length": 3, "output_length": 1, "hash_ids": []}'],
                 "ms", [0, 27.482, 3599], {"output_length": [500, 9, 1]}),
    "a slice from the middle": ("slice.csv", ["time,steps", "36000.5,4", "36001,8", "36100,4"], None, [0, 0.5, 99.5],
                                {"steps": [4, 8, 4]}),
}


@pytest.mark.parametrize("name, lines, unit, arrivals, jobs", PUBLISHED.values(), ids=PUBLISHED)
def test_traces_are_read_as_they_are_published(tmp_path, name, lines, unit, arrivals, jobs):
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    trace = Trace.read(tmp_path / name, unit=unit)
    assert trace.arrival_s == pytest.approx(arrivals, abs=1e-6)
    assert {column: trace.jobs[column].tolist() for column in jobs} == jobs
    process = arrival_process(None, str(tmp_path / name), unit=unit, scale=4)
    assert process.arrival_s == pytest.approx(np.array(arrivals) / 4, abs=1e-6) and len(process.jobs) == len(arrivals)
    if unit:  # whole numbers, of which nothing tells whether they are seconds
        with pytest.raises(ValueError, match=r"line . ?.*whole numbers over more than a day.*--trace-unit"):
            Trace.read(tmp_path / name)


def test_a_window_of_a_trace_starts_at_zero(write):
    path = write("time_s,steps", *(f"{10 * i},{i}" for i in range(30_000)))
    trace = Trace.read(path, window=(100, 150))
    assert trace.arrival_s.tolist() == [0, 10, 20, 30, 40] and trace.jobs["steps"].tolist() == [10, 11, 12, 13, 14]
    process = arrival_process(2.0, str(path), window=[100, 150])
    assert process.rate == pytest.approx(2) and process.jobs["steps"].tolist() == [10, 11, 12, 13, 14]
    with pytest.raises(ValueError, match="no arrival from 1 to 9 s: it spans 0 to 299990 s"):
        Trace.read(path, window=(1, 9))
    for parameters, message in (({"scale": 2}, "rate = 1.0 beside scale = 2"), ({"scale": 0}, "scale = 0 must")):
        with pytest.raises(ValueError, match=message):
            arrival_process(1.0 if parameters["scale"] else None, str(path), **parameters)
    with pytest.raises(ValueError, match=r"arrivals 'poisson' cannot have \{'scale': 2\}"):
        arrival_process(1.0, "poisson", scale=2)


@pytest.mark.parametrize("lines, message", [
    (['{"timestamp": 1}', "[1, 2]"], "one object an arrival"), (['{"timestamp": 1}', "{oops"], "one object an arrival"),
    (['{"timestamp": 1}', '{"timestamp": null}'], "line 2.*'' is no finite time"), (["{}"], "must have one column"),
    ([], "must have one column"), (['{"timestamp": 1}', '{"timestamp": 0}'], "line 2.*earlier"),
])
def test_json_lines_that_are_no_trace(tmp_path, lines, message):
    (tmp_path / "trace.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="(?s)trace.jsonl.*" + message):
        Trace.read(tmp_path / "trace.jsonl")


def test_a_rate_that_moves_is_told_from_one_that_does_not():
    """Of 200 Poisson traces about one in a hundred is below 1 %; a rate that doubles is seen; bursts are no drift."""
    rng = np.random.default_rng(5)
    steady = [Trace(rng.exponential(1, 1000).cumsum()).drift() for _ in range(200)]
    assert sum(p < 0.01 for _, _, p in steady) <= 8
    gaps = np.append(rng.exponential(1, 500), rng.exponential(0.5, 1000))
    low, high, p = Trace(gaps.cumsum()).drift()
    assert p < 1e-6 and low == pytest.approx(1, abs=0.3) and high == pytest.approx(2, abs=0.4)
    bursts = [Trace(arrival_process(1.0, "bursty", scv=2, idc=4).sample(1000, rng)).drift()[2] for _ in range(100)]
    assert sum(p < 0.01 for p in bursts) <= 8
    with pytest.raises(ValueError, match="99 arrivals in 10 parts"):
        Trace(np.arange(99.0)).drift()
