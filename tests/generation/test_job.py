"""StoryJob refuses what cannot be done, and says what can; StoryResult saves all or nothing."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from stlib.generation import StoryJob, StoryResult
from stlib.generation.job import sides

TIMES = {"llm_prefill": 0.1, "llm_decode": 1.0, "text_encoding": 0.1, "denoising": [0.2], "vae_decode": 0.1, "total": 2}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "prompt '' is empty: say what"),
        ({"prompt": "  "}, "is empty"),
        ({"prompt": "x" * 10_000}, "10000 characters, at most 1000"),
        ({"prompt": 7}, "prompt = 7: give text of at most 1000 characters"),
        ({"prompt": "a fox", "n_panels": 0}, "n_panels = 0: give a whole number from 1 to 16"),
        ({"prompt": "a fox", "n_panels": 1.5}, "n_panels = 1.5"),
        ({"prompt": "a fox", "n_panels": True}, "n_panels = True"),
        ({"prompt": "a fox", "n_panels": 2, "captions": ["a fox"]}, "1 captions for n_panels = 2"),
        ({"captions": ["a fox", ""]}, "captions[1] = '': it is empty"),
        ({"prompt": "a fox", "n_panels": 4, "llm_tokens": 15}, "give 16 or more"),
        ({"prompt": "a fox", "exact_tokens": True}, "captions"),
        ({"prompt": "a fox", "captions": ["a fox"] * 4, "exact_tokens": True, "llm_tokens": 3}, "give 4 or more"),
        ({"prompt": "a fox", "method": "psychic"}, "unknown method 'psychic': use one of sequential, parallel"),
        ({"prompt": "a fox", "method": "diagonal"}, "unknown method 'diagonal': use one of sequential"),
        ({"prompt": "a fox", "steps": 0}, "steps = 0"),
        ({"prompt": "a fox", "steps": 10**6}, "from 1 to 200"),
        ({"prompt": "a fox", "image_size": 100_000}, "image_size = 100000"),
        ({"prompt": "a fox", "image_size": 100}, "image_size = 100: give a multiple of 8 from 64 to 2048"),
        ({"prompt": "a fox", "image_size": "big"}, "image_size = 'big'"),
        ({"prompt": "a fox", "image_size": "96x100"}, "image_size = '96x100': give a multiple of 8 from 64"),
        ({"prompt": "a fox", "image_size": "96x4096"}, "image_size = '96x4096'"),
        ({"prompt": "a fox", "image_size": "96x"}, "image_size = '96x'"),
        ({"prompt": "a fox", "guidance_scale": -1}, "guidance_scale = -1"),
        ({"prompt": "a fox", "guidance_scale": float("nan")}, "guidance_scale = nan"),
        ({"prompt": "a fox", "precision": "int3"}, "unknown precision 'int3': use one of fp32"),
        ({"prompt": "a fox", "early_exit": True}, "early_exit"),
        ({"prompt": "a fox", "seed": -1}, "seed = -1"),
    ],
)
def test_refuses(fields, says):
    with pytest.raises(ValueError) as error:
        StoryJob(**fields)
    assert says in str(error.value)


def test_a_size_is_a_side_or_both():
    assert StoryJob("a fox", image_size="128x128") == StoryJob("a fox", image_size=128)
    assert sides(StoryJob("a fox", image_size="96x64").image_size) == (96, 64) and sides(128) == (128, 128)


def test_number_of_panels_follows_the_captions():
    assert StoryJob(captions=["a fox", "a cat"]).n_panels == 2
    assert StoryJob("a fox").n_panels == 4


def test_a_row_of_a_mix_is_a_job():
    job = StoryJob(prompt=None, captions=np.array(["a fox"], dtype=object), n_panels=np.int64(1), steps=np.int64(3),
                   image_size=np.int64(64), guidance_scale=np.float64(2), seed=np.int64(5))
    assert job == StoryJob(captions=("a fox",), steps=3, image_size=64, guidance_scale=2.0, seed=5)


@pytest.mark.parametrize("field", StoryJob.model_fields)
def test_none_is_as_if_left_out(field):
    assert StoryJob(**{"prompt": "a fox", "captions": ["a fox"], field: None}) == StoryJob(
        **{name: value for name, value in {"prompt": "a fox", "captions": ["a fox"]}.items() if name != field})


@pytest.mark.parametrize("text", ["a fox \ud83e", "\udd8a", "a\x00fox", "a fox\x1b[31m", "a\x85fox\x9f"])
@pytest.mark.parametrize("field", ["prompt", "captions"])
def test_text_that_cannot_be_encoded_is_refused(field, text):
    with pytest.raises(ValueError, match="take it out") as error:
        StoryJob(**{field: text})
    assert str(error.value).startswith(field) and str(error.value).encode().isascii()


@pytest.mark.parametrize("text", [" ", "\n\t", "\u200b", "\u00a0\u2060"])
def test_text_without_anything_to_read_is_empty(text):
    for field in ("prompt", "captions"):
        with pytest.raises(ValueError, match="is empty"):
            StoryJob(**{field: text})


def test_other_scripts_signs_and_lines_are_text():
    for text in ("лиса", "狐狸", "\N{FOX FACE}", "a fox\nand\ta cat", "!", "\N{MAN}\u200d\N{ROCKET}"):
        assert StoryJob(text).prompt == text


@pytest.mark.parametrize(("fields", "says"), [
    ({"steps": "3"}, "steps = '3'"), ({"steps": 3.0}, "steps = 3.0"), ({"seed": np.bool_(True)}, "seed = True"),
    ({"guidance_scale": True}, "guidance_scale = True"), ({"guidance_scale": 10**400}, "guidance_scale = 1000"),
    ({"guidance_scale": float("inf")}, "guidance_scale = inf"), ({"captions": 7}, "captions = 7"),
    ({"captions": []}, "captions = []"), ({"captions": {"a fox": 1}}, "captions = {"), ({"captions": ["a"] * 17}, "16"),
    ({"captions": ["a fox", 7]}, "captions[1] = 7"), ({"captions": [None]}, "captions[0] = None"),
    ({"method": 7}, "method = 7: give one of sequential, parallel"),
    ({"method": ["joint"]}, "method = ["),
    ({"image_size": True}, "image_size = True"), ({"exact_tokens": "yes"}, "exact_tokens = 'yes': give True or False"),
    ({"colour": "red"}, "unknown field 'colour': use prompt, n_panels"), ({"\ud83e": 1}, "unknown field '\\ud83e'"),
])
def test_refuses_other_types_in_one_line(fields, says):
    with pytest.raises(ValueError) as error:
        StoryJob(**{"prompt": "a fox"} | fields)
    assert says in str(error.value) and str(error.value).encode().count(b"\n") == 0
    assert error.value.field in fields


def test_a_job_is_frozen_and_can_be_a_key():
    job = StoryJob("a fox", 2, ["a fox", "a cat"])
    assert {job: 1}[StoryJob(captions=("a fox", "a cat"), prompt="a fox")] == 1 and job.captions == ("a fox", "a cat")
    with pytest.raises(ValueError, match="frozen"):
        job.steps = 3
    assert StoryJob(**job.model_dump()) == job == pickle.loads(pickle.dumps(job))


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
