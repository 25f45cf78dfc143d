"""Captions: sentences for scenes, from a small grammar and from sentences that the story's own LLM wrote.

The verbs are shared by captions of one and of two subjects, so that no verb says by itself how many there are.
"""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from training.concepts import CONCEPTS, HELD_OUT, HEROES, PLAIN, parse, words

WITH_OBJECT = (
    "finds", "sees", "has", "holds", "carries", "looks at", "plays with", "loves", "likes", "wants", "takes", "hugs",
    "chases", "follows", "sits by", "stands by", "sits on", "stands next to", "sleeps next to", "walks to", "runs to",
    "goes to", "jumps over", "hides behind", "waits for", "dances with", "dreams of", "sings to", "smiles at",
    "talks to", "laughs at", "draws", "buys", "brings", "gets", "loses", "touches", "eats", "keeps", "makes",
    "shares", "thinks about", "is happy with", "is afraid of", "is next to", "comes with", "points at", "visits",
    "lifts", "pulls", "pushes", "drops", "rides", "throws", "catches", "picks up", "shows", "hits", "kicks", "cleans",
    "opens", "watches", "reads about", "wishes for", "asks for", "flies to", "lives in", "swims to", "climbs",
    "needs", "wears", "puts down", "lights", "builds", "paints", "gives a friend", "says hello to", "feels", "hears",
    "kisses",
)  # fmt: skip
ALONE = (
    "sleeps", "walks", "runs", "sits", "waits", "sings", "dances", "smiles", "laughs", "plays", "is happy", "is sad",
    "is tired", "jumps", "swims", "flies", "cries", "looks around", "goes home", "wakes up", "stays", "hides",
    "rests", "eats", "stands", "thinks", "dreams", "is alone", "says hello", "lives", "reads", "watches",
    "comes home", "is hungry", "feels good", "wins", "talks", "takes a nap", "has fun", "is cold", "gets up",
    "goes to bed", "likes it",
)  # fmt: skip
PAIR = (
    "{h} {v} {o}{p}.", "{h} {v} {o}{p}.", "{h} {v} {o}{p}.", "{h} {v} {his}{p}.", "{h} {a} and {v} {o}{p}.",
    "{h} {v} {o} and {a}{p}.", "{h} {v} {o} and {v} it{p}.", "{h} {v} {o}, and {he} {a}{p}.", "{p}, {h} {v} {o}.",
    "{h} and {o}{p}.", "{h} {a} with {o}{p}.", "there is {h} and {o}{p}.", "{h} with {o}{p}", "{o} is next to {h}{p}.",
    "{h} {a}. {he} {v} {o}{p}.", "{he} {v} {o}, says {h}{p}.", "{h} is{p} and {v} {o}.", "{h} and {his}{p}.",
    "one day {h} {v} {o}{p}.", "then {h} {v} {o}{p}.", "{h} and {o} are{p}.",
)  # fmt: skip
HERO = (
    "{h}", "{h}{p}.", "{h}{p}", "{h} {a}{p}.", "{h} {a}{p}.", "{h} {a} and {a}{p}.", "{p}, {h} {a}.",
    "a picture of {h}{p}.", "once there was {h}{p}.", "{h} is{p}.", "then {h} {a}{p}.", "{h} is{p} and {he} {a}.",
)  # fmt: skip
THING = (
    "{o}", "{o}{p}.", "{o}{p}", "there is {o}{p}.", "a picture of {o}{p}.", "{o} is{p}.", "{p} there is {o}.",
    "they find {o}{p}.", "{o} is here{p}.", "someone {v} {o}{p}.",
)  # fmt: skip
ADJECTIVES = ("little", "small", "happy", "brave", "young", "kind", "curious", "tired", "old", "big", "friendly")
# a template that still says where something happens would contradict the scene it is used for
PLACE_NOUNS = re.compile(
    r"\b(meadow|grass|garden|field|park|hill|night|stars|dark|midnight|beach|sand|shore|snow|winter|snowy|ice|forest|"
    r"woods|trees|desert|dunes|sea|water|waves|lake|ocean|pond|river|room|home|bedroom|kitchen|space|planets?|sky)\b",
    re.IGNORECASE,
)
PRONOUN = {"boy": "he", "girl": "she", "princess": "she"}
POSSESSIVE = {"he": "his", "she": "her", "it": "its"}
PLACE_NAMED = {"pair": 0.75, "single": 0.6}
FROM_LLM = 0.6  # share of the captions with a hero that follow a sentence of the LLM, once there are any


def with_articles(text: str) -> str:
    """Writes "an" before a vowel (but "a unicorn"), one space between words, and a capital at a sentence's start."""
    text = re.sub(r"\b([Aa])n? (?=[aeio]|u(?!ni))", r"\1n ", re.sub(r"\s+", " ", text).strip())
    text = re.sub(r"\b([Aa])n (?=uni|[^aeiou])", r"\1 ", text).replace(" ,", ",").replace(" .", ".")
    return text[:1].upper() + text[1:] if text.endswith(".") else text


def _word(name: str, rng: np.random.Generator, adjectives: bool) -> str:
    options = words(name)
    word = options[0] if len(options) == 1 or rng.random() < 0.6 else str(rng.choice(options[1:]))
    return f"{rng.choice(ADJECTIVES)} {word}" if adjectives and rng.random() < 0.12 else word


def grammar_caption(hero: str | None, right: str | None, phrase: str, rng: np.random.Generator) -> str:
    """A caption from the grammar; `phrase` names the place, or is empty."""
    templates = PAIR if hero and right else HERO if hero else THING
    while True:
        template = str(rng.choice(templates))
        starts_with_place, empty_place = template.startswith("{p}"), "is{p}" in template or "are{p}" in template
        if phrase or not (starts_with_place or empty_place):
            break
    thing = _word(right, rng, adjectives=False) if right else ""
    he = PRONOUN.get(hero, str(rng.choice(["he", "she", "it"])))
    article = str(rng.choice(["the", "a"], p=[0.6, 0.4]))
    slots = {"h": f"{article} {_word(hero, rng, True)}" if hero else "", "he": he, "his": f"{POSSESSIVE[he]} {thing}"}
    slots["o"] = f"{rng.choice(['the', 'a'])} {thing}"
    slots["p"] = phrase if starts_with_place else f" {phrase}" if phrase else ""
    for kind, options in (("v", WITH_OBJECT), ("a", ALONE)):
        while f"{{{kind}}}" in template:
            template = template.replace(f"{{{kind}}}", str(rng.choice(options)), 1)
    return with_articles(template.format(**slots))


class Sentences:
    """Sentences written by the LLM, sorted by what they name, and the templates they give."""

    def __init__(self, lines: list[str]):
        self.verbatim = defaultdict(list)  # (hero, right or None, place or None) -> sentences
        self.templates = {"pair": [], "hero": []}
        for line in dict.fromkeys(line.strip() for line in lines):
            self._add(line)

    def _add(self, line: str) -> None:
        found, place = parse(line)
        names = list(dict.fromkeys(name for name, _ in found))
        if not names or len(names) > 2 or names[0] not in HEROES:
            return
        hero, right = names[0], names[1] if len(names) == 2 else None
        if (hero, right) not in HELD_OUT:
            self.verbatim[hero, right, place and place[0]].append(line)
        if right in HEROES:
            return  # a second hero's sentence is kept as it is, but its verbs rarely suit an object
        template = line.replace("{", "(").replace("}", ")")
        for name, word in found:
            template = re.sub(rf"\b{re.escape(word)}(?=s?\b)", "{h}" if name == hero else "{o}", template)
        if place:
            template = template.replace(" " + place[1], "{p}", 1)
        if not PLACE_NOUNS.search(template):
            self.templates["pair" if right else "hero"].append(template)

    @classmethod
    def read(cls, path: Path, without: set[str] = frozenset()) -> "Sentences":
        """The sentences of a text file, one a line, but those kept for judging (`without`)."""
        lines = path.read_text().splitlines() if path.exists() else []
        return cls([line for line in lines if line.strip() not in without])

    def caption(self, hero: str, right: str | None, place: str | None, phrase: str, rng: np.random.Generator) -> str:
        """A caption after a sentence of the LLM: word for word where one fits the scene, else from a template."""
        fitting = self.verbatim.get((hero, right, place if phrase else None))
        if fitting and rng.random() < 0.5:
            return str(rng.choice(fitting))
        template = str(rng.choice(self.templates["pair" if right else "hero"]))
        if phrase and "{p}" not in template:
            template = re.sub(r"([.!?]?)$", r"{p}\1", template, count=1)
        slots = {"h": _word(hero, rng, False), "o": _word(right, rng, False) if right else ""}
        return with_articles(template.format(**slots, p=f" {phrase}" if phrase else ""))


def caption(hero: str | None, right: str | None, place: str, sentences: Sentences, rng: np.random.Generator) -> str:
    """A random caption for a scene; its place is named in a part of the captions only."""
    phrases = CONCEPTS["places"].get(place) if place != PLAIN else None
    named = phrases and rng.random() < PLACE_NAMED["pair" if hero and right else "single"]
    phrase = str(rng.choice(phrases)) if named else ""
    kind = "pair" if right else "hero"
    if hero and right not in HEROES and sentences.templates[kind] and rng.random() < FROM_LLM:
        return sentences.caption(hero, right, place, phrase, rng)
    if hero and right in HEROES and sentences.verbatim.get((hero, right, place if phrase else None)):
        return sentences.caption(hero, right, place, phrase, rng)
    return grammar_caption(hero, right, phrase, rng)


def names(row: np.ndarray) -> tuple[str | None, str | None, str]:
    """A scene's hero, right subject and place by name."""
    from training.scenes import BACKDROPS, RIGHT

    hero, right, place = (int(i) for i in row[:3])
    return HEROES[hero] if hero >= 0 else None, RIGHT[right] if right >= 0 else None, BACKDROPS[place]


def captions(rows: np.ndarray, sentences: Sentences, rng: np.random.Generator) -> list[str]:
    """One caption for each row of a table of scenes [n, 5]."""
    return [caption(*names(row), sentences, rng) for row in rows]
