"""Published lists of requests, and traces whose columns set jobs."""

import json

import numpy as np
import pandas as pd
import pytest

from stlib.experiment import JobMix
from stlib.experiment.jobs import Listed, listed
from stlib.experiment.request_lists import read_requests

LINE = ("Request(request_id=7, prompt='a fox', width=1344, height=768, num_inference_steps=20, timestamp=0.5, "
        "slo_ms=900)")


def test_both_forms_are_the_same_requests(tmp_path):
    fields = {"request_id": 7, "prompt": "a fox", "width": 1344, "height": 768, "num_inference_steps": 20,
              "timestamp": 0.5, "slo_ms": 900, "vae_tiling": True}
    (tmp_path / "a.txt").write_text(f"{LINE}\n\n{LINE.replace('0.5', '2')}\n")
    (tmp_path / "b.jsonl").write_text(json.dumps(fields) + "\n" + json.dumps(fields | {"timestamp": 2}) + "\n")
    (jobs, arrival, slo), (again, *_) = (read_requests(tmp_path / name) for name in ("a.txt", "b.jsonl"))
    pd.testing.assert_frame_equal(jobs, again)
    assert arrival.tolist() == [0.5, 2] and slo.tolist() == [0.9, 0.9]
    assert jobs.iloc[0][["image_size", "steps", "n_panels", "captions"]].tolist() == ["1344x768", 20, 1, ("a fox",)]
    (tmp_path / "c.txt").write_text("Request(prompt='a', width=512, height=512, num_inference_steps=4, n=2)")
    jobs, arrival, slo = read_requests(tmp_path / "c.txt")
    assert arrival is None and slo is None and jobs.loc[0, "image_size"] == 512 and len(jobs.loc[0, "captions"]) == 2


@pytest.mark.parametrize("lines, message", [
    (["import os"], "line 1: 'import os' is no request"), ([LINE, "Request(__import__('os'))"], "line 2.*no request"),
    (["Request(prompt=open('x'))"], "is no request"), ([LINE.replace("20", "0")], "line 1: steps = 0"),
    ([LINE.replace("prompt='a fox', ", "")], "prompt is missing"), ([LINE.replace("1344", "13")], "'13x768'"),
    ([LINE, LINE.replace(", timestamp=0.5", "")], "timestamp is in some lines only"),
    ([LINE, LINE.replace("0.5", "0.25")], "request 1: timestamp 0.25 .*earlier"), ([], "holds no request"),
    ([LINE.replace("900", "0")], "slo_ms = 0"),
])
def test_what_is_no_list_is_refused_by_its_line(tmp_path, lines, message):
    (tmp_path / "list.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        read_requests(tmp_path / "list.txt")


def test_a_trace_s_columns_set_the_jobs(tmp_path):
    mix = JobMix.from_yaml("images")
    trace = tmp_path / "trace.csv"
    trace.write_text("time,steps,width,height,n_panels,model\n0,12,96,128,1,x\n1,20,128,128,2,y\n2,12,96,128,1,x\n")
    jobs = listed(mix, {"name": str(trace)})
    drawn = jobs.sample(3, np.random.default_rng(0))
    assert drawn["steps"].tolist() == [12, 20, 12] and drawn["image_size"].tolist() == ["96x128", 128, "96x128"]
    assert [len(one) for one in drawn["captions"]] == [1, 2, 1] and jobs.name == mix.name
    combinations, shares = jobs.combinations()
    assert shares.sum() == pytest.approx(1)
    two_thirds = shares[(combinations["steps"] == 12).to_numpy()].sum()
    assert two_thirds == pytest.approx(2 / 3) and set(combinations["n_panels"]) == {1, 2}
    with pytest.raises(ValueError, match="4 jobs of a list of 3"):
        jobs.sample(4, np.random.default_rng(0))
    trace.write_text("time,tokens\n0,12\n1,13\n")
    assert listed(mix, {"name": str(trace)}) is mix and listed(mix, {"name": "poisson"}) is mix
    with pytest.raises(ValueError, match="job 1 of the list: steps = 0"):
        Listed.by(mix, pd.DataFrame({"steps": [4, 0]}))
    both = JobMix.from_yaml("stories_and_tables")
    assert Listed.by(both, pd.DataFrame({"steps": [4]})) is both
