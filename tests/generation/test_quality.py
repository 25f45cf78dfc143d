"""Quality: each measure against a value known beforehand, and that it moves the right way."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

from stlib import paths
from stlib.generation import StoryJob
from stlib.generation.quality import (
    FEATURES,
    HubJudge,
    Judge,
    alignment,
    by_story,
    coherence,
    fid,
    kid,
    similarity,
)

ASKED = pd.read_csv(paths.DATA / "stories_held_out.csv", keep_default_na=False)


@pytest.fixture(scope="module")
def judge():
    return Judge()


@pytest.fixture(scope="module")
def told(storyteller):
    """Two held-out stories, by independent panels."""
    stories = [ASKED[ASKED["story"] == number] for number in (1, 4)]
    return pd.concat(stories, ignore_index=True), [
        panel for story in stories for panel in storyteller.tell(
            StoryJob(captions=list(story["caption"]), method="parallel", steps=12, seed=6)).panels]


@pytest.fixture(scope="module")
def real(judge):
    return judge.real["held_out"]


def test_the_judge_reads_what_was_drawn(judge, told):
    asked, panels = told
    read, features = judge.read(panels)
    assert alignment(read, asked).mean().min() > 0.7
    assert features.shape == (len(panels), FEATURES) and np.isfinite(features).all()
    larger, _ = judge.read([panel.resize((256, 256)) for panel in panels])
    assert (larger == read).to_numpy().mean() > 0.8
    with pytest.raises(ValueError, match="no panels"):
        judge.read([])


def test_the_held_out_stories_are_of_subjects_that_the_judge_knows(judge):
    assert ASKED.groupby("story").size().eq(4).all() and ASKED["story"].nunique() == 256
    for name in ("hero", "object", "place"):
        assert set(ASKED[name]) <= {*judge.names[name], ""}
    assert len(judge.real["held_out"]) == len(ASKED)
    assert alignment(judge.named(judge.real["held_out"]), ASKED).mean().min() > 0.99


def test_alignment_counts_what_a_caption_names():
    read = pd.DataFrame({"hero": ["fox", "cat"], "object": ["key", ""], "place": ["snow", "sea"]})
    asked = pd.DataFrame({"hero": ["fox", "dog"], "object": ["key", ""], "place": ["", "sea"]})
    found = alignment(read, asked)
    assert found["hero"].tolist() == [1, 0] and found["place"].isna().tolist() == [True, False]
    assert found["object"].tolist()[0] == 1 and np.isnan(found["object"][1])


def test_coherence_by_hand():
    read = pd.DataFrame({"hero": "fox", "object": ["key", "key", "star", ""], "place": ["snow", "snow", "sea", "snow"],
                         "style": ["a", "a", "a", "b"], "look": ["x"] * 4})
    asked = pd.DataFrame({"object": ["key", "star", "star", ""], "place": ["", "", "sea", ""]})
    [row] = coherence(read, asked, [7] * 4).to_dict("records")
    assert row == {"style": 0.5, "look": 1.0, "place": 1.0, "copied": 0.25}
    assert coherence(read[:1], asked[:1], [0]).isna().all(axis=None)


def test_alike_panels_are_similar():
    features = np.random.default_rng(1).normal(size=(200, 16))
    story = np.repeat(np.arange(50), 4)
    assert abs(similarity(features, story).mean()) < 0.05
    assert similarity(np.repeat(features[:50], 4, axis=0), story).mean() == pytest.approx(1)


def test_fid_is_frechets_formula():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(400, 8)), rng.normal(0.3, 1.4, size=(500, 8)) @ rng.normal(size=(8, 8)) / 3
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert fid(a, b) == pytest.approx(expected, rel=1e-3)


def test_kid_is_the_unbiased_cubic_kernel_distance():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(60, 8)), rng.normal(0.5, 1, size=(60, 8))

    def kernel(x, y):
        return (x @ y.T / 8 + 1) ** 3

    def off(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    assert kid(a, b) == pytest.approx(off(kernel(a, a)) + off(kernel(b, b)) - 2 * kernel(a, b).mean(), rel=1e-4)
    assert kid(a, b) == kid(a, b)


@pytest.mark.parametrize("distance", [fid, kid])
def test_distances_move_the_right_way(distance, real):
    """Floor: real against real of the same size. More noise is farther, mixed-up features are farthest."""
    rng = np.random.default_rng(4)
    one, other = real[:512], real[512:]
    noisy = [distance(one, other + level * real.std(0) * rng.normal(size=other.shape)) for level in (0.3, 0.6, 1)]
    mixed = rng.permuted(other, axis=0)
    assert distance(one, other) < noisy[0] < noisy[1] < noisy[2]
    assert distance(one, mixed) > distance(one, other)


@pytest.mark.parametrize("drawn, says", [
    (np.ones((200, FEATURES)), "all drawn pictures are the same"),
    (np.full((200, FEATURES), np.nan), "not a number"),
    (np.zeros((FEATURES, FEATURES)), f"{FEATURES} drawn pictures: give at least {2 * FEATURES}"),
])
@pytest.mark.parametrize("distance", [fid, kid])
def test_sets_without_a_distance_are_refused(distance, drawn, says, real):
    with pytest.raises(ValueError, match=says):
        distance(real, drawn)


def test_a_bootstrap_by_story_covers():
    rng, covered = np.random.default_rng(5), 0
    for _ in range(200):
        values = rng.exponential(size=40)
        _, low, high = by_story(lambda chosen, v=values: v[chosen].mean(), 40, rng, draws=200)
        covered += low <= 1 <= high
    assert 0.86 < covered / 200 < 0.99


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
            "vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
              "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    letters = "abcdefghijklmnopqrstuvwxyz"
    (folder / "vocab.json").write_text(str({word: i for i, word in enumerate(
        ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)])}).replace("'", '"'))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16).save_pretrained(folder)
    return folder


PANELS = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]


def test_clip_of_a_hub(tiny_clip):
    hub = HubJudge(str(tiny_clip))
    features = hub.features(PANELS)
    assert features.shape == (3, 16) and np.allclose((features**2).sum(1), 1, atol=1e-5)
    score = hub.alignment(PANELS, ["a fox", "a red fox in the deep snow at night", "fox"])
    assert score.shape == (3,) and ((score >= 0) & (score <= 100)).all()


def test_dino_of_a_hub_has_features_and_reads_no_captions(tmp_path):
    Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                             patch_size=14)).save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28).save_pretrained(tmp_path)
    hub = HubJudge(str(tmp_path))
    assert hub.features(PANELS).shape == (3, 32)
    with pytest.raises(ValueError, match="reads no captions"):
        hub.alignment(PANELS, ["a"] * 3)
