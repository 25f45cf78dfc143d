"""What the illustrator draws: heroes, objects and places, read from the concepts.json that ships with its weights."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL_DIR = ROOT / "data" / "models" / "illustrator"
WORK = Path(__file__).resolve().parent / "work"

CONCEPTS = json.loads((MODEL_DIR / "concepts.json").read_text())
HEROES = list(CONCEPTS["heroes"])
OBJECTS = list(CONCEPTS["objects"])
PLACES = list(CONCEPTS["places"])
STYLES = CONCEPTS["styles"]
LOOKS = CONCEPTS["looks"]
SKY = set(CONCEPTS["sky"])
HELD_OUT = {tuple(pair) for pair in CONCEPTS["held_out_pairs"]}
PLAIN = "plain"  # the place of a scene without one; no caption names it


def words(name: str) -> list[str]:
    """The words a caption may use for a hero or an object, its own name first."""
    return (CONCEPTS["heroes"].get(name) or CONCEPTS["objects"][name])["words"]


def _pattern(names: list[str]) -> re.Pattern:
    by_word = sorted({word for name in names for word in words(name)}, key=len, reverse=True)
    return re.compile(r"\b(" + "|".join(map(re.escape, by_word)) + r")(?=s?\b)", re.IGNORECASE)


_SUBJECT = _pattern(HEROES + OBJECTS)
_NAME_OF = {word: name for name in HEROES + OBJECTS for word in words(name)}
_PLACE_OF = {phrase: place for place in PLACES for phrase in CONCEPTS["places"][place]}
_PLACE = re.compile(r"\b(" + "|".join(sorted(_PLACE_OF, key=len, reverse=True)) + r")\b", re.IGNORECASE)


def parse(sentence: str) -> tuple[list[tuple[str, str]], tuple[str, str] | None]:
    """The drawable things a sentence names: ([(name, word as written), ...] in order, (place, phrase) or None)."""
    found = _PLACE.search(sentence)
    place = (_PLACE_OF[found[0].lower()], found[0]) if found else None
    rest = _PLACE.sub(" ", sentence)
    return [(_NAME_OF[m[1].lower()], m[1]) for m in _SUBJECT.finditer(rest)], place
