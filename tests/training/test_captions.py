"""Captions name what their scene holds, and sentences are understood the way the illustrator draws them."""

import numpy as np
import pytest

from training.captions import Sentences, caption, grammar_caption, with_articles
from training.concepts import CONCEPTS, HELD_OUT, HEROES, OBJECTS, PLACES, parse
from training.scenes import RIGHT, SHARES, is_held_out, table


def named(sentence):
    found, place = parse(sentence)
    return {name for name, _ in found}, place and place[0]


@pytest.mark.parametrize(
    ("sentence", "names", "place"),
    [
        ("The little fox finds a red balloon in the dark forest.", {"fox", "balloon"}, "forest"),
        ("A kitten and a teddy bear inside the house.", {"cat", "teddy bear"}, "room"),
        ("The penguins look at the sailing ship under the stars.", {"penguin", "boat"}, "night"),
        ("That chick is happy.", {"chick"}, None),
        ("He runs.", set(), None),
    ],
)
def test_sentences_are_parsed(sentence, names, place):
    assert named(sentence) == (names, place)


def test_grammar_captions_name_their_scene():
    rng = np.random.default_rng(0)
    for _ in range(400):
        hero, thing, place = (str(rng.choice(names)) for names in (HEROES, OBJECTS, PLACES))
        phrase = str(rng.choice(CONCEPTS["places"][place]))
        hero, thing = [(hero, thing), (hero, None), (None, thing)][rng.integers(3)]
        text = grammar_caption(hero, thing, phrase, rng)
        assert named(text)[0] == {hero, thing} - {None}, text
        assert named(text)[1] in (place, None), text
        assert "{" not in text and "  " not in text


def test_articles():
    assert with_articles("a owl and an fox see a unicorn .") == "An owl and a fox see a unicorn."


def test_llm_sentences_become_templates():
    sentences = Sentences(["The dog hugs the key.", "The fox sleeps on the beach.", "The robot flies into the sky."])
    assert sentences.templates == {"pair": ["The {h} hugs the {o}."], "hero": ["The {h} sleeps{p}."]}
    assert sentences.verbatim["dog", "key", None] == ["The dog hugs the key."]
    told = {caption("owl", "cake", "sea", sentences, np.random.default_rng(i)) for i in range(40)}
    assert any("owl hugs the" in text for text in told)


def test_held_out_pairs_are_never_told_word_for_word():
    hero, thing = sorted(HELD_OUT)[0]
    assert not Sentences([f"The {hero} sees the {thing}."]).verbatim


def test_scene_tables_keep_held_out_pairs_apart():
    rng = np.random.default_rng(1)
    train, held_out = table(500, rng, SHARES), table(100, rng, {"pair": 1.0}, held_out=True)
    assert not any(is_held_out(row[0], row[1]) for row in train)
    assert all(is_held_out(row[0], row[1]) for row in held_out)
    assert train[:, 1].max() < len(RIGHT) and (train[:, 2:] >= 0).all()
    assert len(HELD_OUT) == pytest.approx(0.1 * len(HEROES) * len(OBJECTS), rel=0.05)
