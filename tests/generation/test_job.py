"""StoryJob refuses what cannot be done, and says what can; StoryResult saves all or nothing."""

import json

import numpy as np
import pytest
from PIL import Image

from stlib.generation import StoryJob, StoryResult

TIMES = {"llm_prefill": 0.1, "llm_decode": 1.0, "text_encoding": 0.1, "denoising": [0.2], "vae_decode": 0.1, "total": 2}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "prompt '' is empty"),
        ({"prompt": "  "}, "is empty"),
        ({"prompt": "x" * 10_000}, "10000 characters, at most 1000"),
        ({"prompt": 7}, "give a string"),
        ({"prompt": "a fox", "n_panels": 0}, "n_panels = 0: give a whole number from 1 to 16"),
        ({"prompt": "a fox", "n_panels": 1.5}, "n_panels = 1.5"),
        ({"prompt": "a fox", "n_panels": True}, "n_panels = True"),
        ({"prompt": "a fox", "n_panels": 2, "captions": ["a fox"]}, "1 captions for n_panels = 2"),
        ({"captions": ["a fox", ""]}, "caption ''"),
        ({"prompt": "a fox", "n_panels": 4, "llm_tokens": 15}, "give 16 or more"),
        ({"prompt": "a fox", "exact_tokens": True}, "captions"),
        ({"prompt": "a fox", "captions": ["a fox"] * 4, "exact_tokens": True, "llm_tokens": 3}, "give 4 or more"),
        ({"prompt": "a fox", "method": "psychic"}, "unknown method 'psychic': use one of sequential, parallel"),
        ({"prompt": "a fox", "method": "autoregressive"}, "not implemented yet: use one of sequential, parallel"),
        ({"prompt": "a fox", "steps": 0}, "steps = 0"),
        ({"prompt": "a fox", "steps": 10**6}, "from 1 to 200"),
        ({"prompt": "a fox", "image_size": 100_000}, "image_size = 100000"),
        ({"prompt": "a fox", "image_size": 100}, "multiple of 8"),
        ({"prompt": "a fox", "image_size": "big"}, "image_size = 'big'"),
        ({"prompt": "a fox", "guidance_scale": -1}, "guidance_scale = -1"),
        ({"prompt": "a fox", "guidance_scale": float("nan")}, "guidance_scale = nan"),
        ({"prompt": "a fox", "precision": "int3"}, "precision 'int3' is not implemented: use one of fp32"),
        ({"prompt": "a fox", "early_exit": True}, "early_exit"),
        ({"prompt": "a fox", "seed": -1}, "seed = -1"),
    ],
)
def test_refuses(fields, says):
    with pytest.raises(ValueError) as error:
        StoryJob(**fields)
    assert says in str(error.value)


def test_number_of_panels_follows_the_captions():
    assert StoryJob(captions=["a fox", "a cat"]).n_panels == 2
    assert StoryJob("a fox").n_panels == 4


def test_a_row_of_a_mix_is_a_job():
    job = StoryJob(prompt=None, captions=np.array(["a fox"], dtype=object), n_panels=np.int64(1), steps=np.int64(3),
                   image_size=np.int64(64), guidance_scale=np.float64(2), seed=np.int64(5))
    assert job == StoryJob(captions=("a fox",), steps=3, image_size=64, guidance_scale=2.0, seed=5)


@pytest.fixture
def result():
    job = StoryJob("a fox", n_panels=np.int64(2), llm_tokens=8)
    panels = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    return StoryResult("A fox. It runs.", ("A fox.", "It runs."), panels, TIMES, 6, 40, job, {"models": "none"})


def test_strip_holds_the_panels_in_order(result):
    strip = result.strip(gap=4)
    assert strip.size == (132, 64)
    assert [strip.getpixel((x, 30)) for x in (10, 66, 100)] == [(255, 0, 0), (255, 255, 255), (0, 0, 255)]


def test_save_writes_everything(result, tmp_path):
    folder = result.save(tmp_path / "new" / "story")
    assert {file.name for file in folder.iterdir()} == {
        "story.txt", "captions.txt", "panel_1.png", "panel_2.png", "strip.png", "story.json"}
    facts = json.loads((folder / "story.json").read_text())
    assert StoryJob(**facts["job"]) == result.job
    assert facts["timings"] == TIMES and facts["tokens_run"] == 6
    assert (folder / "captions.txt").read_text().splitlines() == list(result.captions)


def test_save_keeps_what_is_there(result, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        result.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_save_leaves_nothing_half_written(result, tmp_path):
    result.timings["total"] = object()  # JSON cannot hold it
    with pytest.raises(TypeError):
        result.save(tmp_path / "story")
    assert list(tmp_path.iterdir()) == []
