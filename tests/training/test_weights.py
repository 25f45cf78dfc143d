"""The committed weights fit together, and what they may draw is written consistently."""

import json

from training.concepts import CONCEPTS, HELD_OUT, HEROES, MODEL_DIR, OBJECTS, PLACES, SKY, words
from training.diffusion import new_scheduler, new_unet
from training.vae import new_vae

MEGABYTE = 1e6


def config(part):
    return json.loads(next((MODEL_DIR / part).glob("*config.json")).read_text())


def test_weights_are_at_most_30_megabytes():
    assert 0 < sum(f.stat().st_size for f in MODEL_DIR.rglob("*.safetensors")) <= 30 * MEGABYTE


def test_committed_configurations_are_those_of_the_code():
    for part, made in (("unet", new_unet()), ("vae", new_vae()), ("scheduler", new_scheduler())):
        committed = config(part)
        for key, value in made.config.items():
            if not key.startswith("_"):
                assert committed[key] == (list(value) if isinstance(value, tuple) else value), (part, key)


def test_every_word_means_one_thing():
    all_words = [word for name in HEROES + OBJECTS for word in words(name)]
    phrases = [phrase for place in PLACES for phrase in CONCEPTS["places"][place]]
    assert len(set(all_words)) == len(all_words) and len(set(phrases)) == len(phrases)
    assert set(OBJECTS) >= SKY
    assert all(hero in HEROES and thing in OBJECTS for hero, thing in HELD_OUT)
