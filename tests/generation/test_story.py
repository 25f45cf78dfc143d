"""The story: exact counts, shares, seeds, the kept prefix."""

import pytest

from stlib.generation import StoryWriter, load_llm
from stlib.generation.story import opening


@pytest.mark.parametrize(
    ("prompt", "begins"),
    [
        ("a fox and a red balloon", "The fox"),
        ("an owl", "The owl"),
        ("a lonely astronaut in space", "The lonely astronaut"),
        ("The fox finds a key", "The fox"),
        ("robots", "The robots"),
        ("Alice and the white rabbit", "Alice"),
        ("my little dog", "The little dog"),
        ("draw a fox", "The"),
        ("tell me about the history of trains", "The"),
        ("", "The"),
        ("the incomprehensibilities and their counterrevolutionaries", "The incomprehensibilities"),
        ("x" * 400, "The"),
        ("狐狸" * 100, "The"),
        ("\N{FOX FACE}" * 400, "The"),
        ("\N{FOX FACE} and \N{BALLOON}", "The \N{FOX FACE}"),
    ],
)
def test_opening(prompt, begins):
    assert opening(prompt) == begins


@pytest.mark.parametrize("prompt", ["a fox", "  a   fox ", "狐狸", "\N{FOX FACE}" * 20])
def test_prompt_tokens_are_counted_as_they_are_read(storyteller, prompt):
    tokens = storyteller.prompt_tokens(prompt)
    assert tokens == storyteller.writer.write(prompt, 1, 4, seed=0).prompt_tokens
    assert tokens == {"a fox": 2, "  a   fox ": 2, "狐狸": 6}.get(prompt, 60)


@pytest.mark.parametrize("n_panels", [1, 5])
def test_as_many_sentences_as_panels(storyteller, n_panels):
    story = storyteller.writer.write("a fox and a red balloon", n_panels, 10 * n_panels, seed=2)
    assert len(story.sentences) == n_panels
    assert all(sentence.startswith("The fox ") and len(sentence) > 10 for sentence in story.sentences)
    assert len({sentence.split()[2] for sentence in story.sentences}) == n_panels, "each panel has another verb"
    assert n_panels * 2 <= story.tokens_run <= 10 * n_panels


def test_a_sentence_ends_at_its_share(storyteller):
    done = []
    story = storyteller.writer.write("a cat and a cake", 3, 12, seed=1, on_token=lambda *now: done.append(now))
    assert len(story.sentences) == 3 and story.tokens_run <= 12
    assert done == [(i, 12) for i in range(1, story.tokens_run + 1)]


def test_exact_tokens(storyteller):
    story = storyteller.writer.write("a cat and a cake", 3, 14, seed=1, exact_tokens=True)
    assert story.tokens_run == 14 and len(story.sentences) == 3


def test_seed_fixes_the_story(storyteller):
    one, same, other = (storyteller.writer.write("a dog and a ball", 2, 12, seed) for seed in (1, 1, 2))
    assert one.sentences == same.sentences != other.sentences


def test_kept_prefix_changes_time_only(tiny_llama):
    model, tokenizer = load_llm(str(tiny_llama), dtype="fp32")
    kept, fresh = (StoryWriter(model, tokenizer, keep_prefix=keep) for keep in (True, False))
    for seed in range(3):  # the second and third show that a story does not touch the kept prefix
        assert (kept.write("a fox and a drum", 4, 40, seed).sentences
                == fresh.write("a fox and a drum", 4, 40, seed).sentences)


def test_a_prompt_longer_than_the_context_is_refused(tiny_llama):
    model, tokenizer = load_llm(str(tiny_llama), dtype="fp32")
    with pytest.raises(ValueError, match="the LLM has 512"):
        StoryWriter(model, tokenizer).write("fox " * 200, 4, 64, seed=0)
