"""A system is measured into a folder, and every command takes that folder."""

import json
import re
import sys

import pandas as pd
import pytest

from stlib import paths
from stlib.experiment import Costs
from stlib.experiment.system import coefficients, measure_system, plan_of, read_spec
from stlib.serving.replica import ReplicaSpec
from stlib.serving.rules import read_menu

sys.path.extend([str(paths.ROOT / "tests" / room) for room in ("generation", "serving")])
from service import Command
from tiny import tiny_flux, tiny_gpt2, tiny_llama, tiny_qwen, tiny_sd, tiny_sd3, tiny_sdxl

__all__ = ["tiny_flux", "tiny_gpt2", "tiny_llama", "tiny_qwen", "tiny_sd", "tiny_sd3", "tiny_sdxl"]

DESIGN = """
seed: 1
experiments:
  own:
    levels:
      method: [sequential, parallel]
      n_panels: [1, 2]
      steps: [2, 6]
      llm_tokens: [0, 8]
      image_size: [auto, 96x64]
    replicates: 2
"""
MIX = """
workload: story
pool: stories
texts: [captions]
n_panels: [1, 2]
llm_tokens: 64
classes:
  - {image_size: 64, steps: 2, weight: 3}
  - {image_size: 96x64, steps: 6, weight: 1}
guidance_scale: 7.5
"""


@pytest.fixture
def design(tmp_path):
    file = tmp_path / "my.yml"
    file.write_text(DESIGN)
    return file


def test_a_design_s_runs_are_those_that_the_models_can_do(design, tiny_sd):
    menu = read_menu()
    runs, refused = plan_of(ReplicaSpec("story", {"models": {"llm": "none", "ldm": str(tiny_sd)}}), design, menu)
    assert len(runs) == 32 and sum(refused.values()) == 32 and "no LLM is loaded" in next(iter(refused))
    assert set(runs["image_size"]) == {64, "96x64"} and (runs["prompt"] == "").all()
    own, refused = plan_of(ReplicaSpec(), design, menu)
    assert len(own) == 64 and not refused and set(own["image_size"]) == {128, "96x64"}
    assert own["exact_tokens"].sum() == 32 and (own["captions"].map(len) == own["n_panels"]).all()
    design.write_text(DESIGN.replace("llm_tokens: [0, 8]", "llm_tokens: [8, 9]"))
    with pytest.raises(ValueError, match=r"my\.yml: these models can do none of its runs: prompt .* no LLM is loaded"):
        plan_of(ReplicaSpec("story", {"models": {"llm": "none", "ldm": str(tiny_sd)}}), design, menu)
    design.write_text(DESIGN.replace("[sequential, parallel]", "[sequential, magic]"))
    with pytest.raises(ValueError, match="unknown method of the menu 'magic'"):
        plan_of(ReplicaSpec(), design, menu)


@pytest.fixture
def measured(cluster, shell, design, tiny_sd, tmp_path):
    """The system's folder, and the options that ask for it and for a mix of its jobs."""
    told, code = shell("measure", "--ldm", tiny_sd, "--llm", "none", "--design", design, "--out", tmp_path / "mine")
    assert code == 0 and "left out, 32 runs: prompt" in told and "unseen runs: mean off by" in told
    assert "parallel" in told and "kept in" in told
    (tmp_path / "mix.yml").write_text(MIX)
    return tmp_path / "mine", ("--mix", tmp_path / "mix.yml", "--system", tmp_path / "mine")


def test_a_system_is_measured_and_then_predicted(shell, measured, design, tiny_sd):
    out, asked = measured
    costs, spec = Costs.read("story", out), read_spec(out)
    assert costs.methods == ("parallel", "sequential") and spec.options["models"]["ldm"] == str(tiny_sd)
    assert (coefficients(costs)["low"] < coefficients(costs)["high"]).all()
    again, code = shell("measure", "--ldm", tiny_sd, "--llm", "none", "--design", design, "--out", out)
    assert code == 0 and "runs: 32 rows kept, 0 to measure" in again
    told, code = shell("predict", "--rate", 1, *asked)
    assert code == 0 and "sequential, 1 jobs/s on 1 replicas" in told
    assert "leave them out, or measure that system" in shell("replay", "--rate", 3, "--threads", 2, *asked)[1]
    (out / "system.json").write_text("{}")
    assert "no system of this version" in shell("replay", "--rate", 3, *asked)[1]


@pytest.mark.slow
def test_a_measured_system_is_replayed(shell, measured, tmp_path):
    _, asked = measured
    told, code = shell("replay", "--rate", 3, "--jobs", 20, "--out", tmp_path / "runs", *asked)
    assert code == 0 and "served" in told
    jobs = pd.read_parquet(tmp_path / "runs" / "served" / "cell_0_run_1" / "jobs.parquet")
    assert set(jobs["image_size"].map(str)) == {"64", "96x64"}


SMALL_DESIGN = """
seed: 1
experiments:
  own:
    levels: {n_panels: [1, 2], steps: [2, 4], llm_tokens: [0, 8]}
    fixed: {method: parallel, image_size: 64, guidance_scale: 2.5}
    replicates: 3
"""
SMALL_MIX = """
workload: story
pool: stories
texts: [prompt, captions]
exact_tokens: true
n_panels: [1, 2]
steps: [2, 4]
llm_tokens: 8
image_size: 64
guidance_scale: 2.5
"""


@pytest.mark.slow
@pytest.mark.parametrize("ldm, llm", [("tiny_flux", "tiny_gpt2"), ("tiny_sd3", "tiny_llama"),
                                      ("tiny_sdxl", "tiny_qwen"), ("tiny_sd", "tiny_llama")])
def test_any_pipeline_and_llm_is_measured_served_and_replayed(request, cluster, shell, tmp_path, ldm, llm):
    models = [request.getfixturevalue(name) for name in (ldm, llm)]
    (tmp_path / "my.yml").write_text(SMALL_DESIGN)
    (tmp_path / "mix.yml").write_text(SMALL_MIX)
    out = tmp_path / "mine"
    told, code = shell("measure", "--ldm", models[0], "--llm", models[1], "--design", tmp_path / "my.yml", "--out", out)
    assert code == 0 and "kept in" in told, (told, code)
    told, code = shell("predict", "--rate", 0.5, "--method", "parallel", "--mix", tmp_path / "mix.yml", "--system", out)
    assert code == 0 and "parallel, 0.5 jobs/s on 1 replicas" in told, (told, code)
    with Command("--system", str(out), "--method", "parallel") as service:
        panels = service.send({"prompt": "a fox", "n_panels": 2, "steps": 2, "llm_tokens": 8, "image_size": 64}).json()
    assert len(panels["panels"]) == 2
    told, code = shell("replay", "--rate", 0.5, "--jobs", 10, "--method", "parallel", "--mix", tmp_path / "mix.yml",
                       "--system", out, "--out", tmp_path / "runs")
    assert code == 0 and re.search("(stable|backlogged|overloaded): load", told), (told, code)


def test_too_short_a_time_loses_nothing(cluster, design, tiny_sd, tmp_path):
    spec, menu = ReplicaSpec("story", {"models": {"llm": "none", "ldm": str(tiny_sd)}}), read_menu()
    runs, _ = plan_of(spec, design, menu)
    with pytest.raises(ValueError, match="give more --minutes or a smaller --design"):
        measure_system(spec, runs, tmp_path / "mine", menu=menu, seconds=0.1)
    kept = (tmp_path / "mine" / "runs.jsonl").read_text().splitlines()
    assert kept and all(json.loads(line)["run_s"] > 0 for line in kept)
    assert not (tmp_path / "mine" / "system.json").exists()


def test_what_is_no_system_is_refused(tmp_path):
    assert read_spec(paths.REFERENCE) is None
    with pytest.raises(ValueError, match="holds no system: make one with `python -m stlib measure"):
        read_spec(tmp_path)
