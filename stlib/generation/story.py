"""The LLM's part: a prompt becomes an exact number of short sentences.

A small LLM wanders, so it is held by a few-shot frame. Two worked examples show the form; every sentence is begun
for it ("2. The fox"), which keeps it to the subject; the first word it adds must be one that can follow (no "and"
or "in") and that no earlier sentence used, so that each panel shows another action. The openings are fed in one
pass together with the last token, and are not counted as decoded tokens.
"""

import copy
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache

from stlib.settings import FieldError

FRAME = """Subject: a rabbit and a drum in the forest
1. The rabbit finds a drum in the forest.
2. The rabbit plays the drum under a tree.
3. The rabbit carries the drum through the forest.
4. The rabbit sleeps beside the drum.

Subject: a girl and a kite on the beach
1. The girl walks along the beach with a kite.
2. The girl flies the kite over the sea.
3. The girl loses the kite on the beach.
4. The girl hugs the kite and smiles.

Subject:"""
NOT_FIRST = {"and", "or", "of", "who", "that", "which", "is", "are", "was", "were", "in", "on", "at", "with", "to",
             "from", "by", "for", "the", "a", "an"}
STOP_MARKS = ".!?"
DETERMINER = re.compile(r"^(an?|the|one|some|my|your|his|her|our|their)\s+", re.IGNORECASE)
TEMPERATURE, TOP_K = 0.6, 40
MAX_OPENING_BYTES = 32  # it is read anew for every panel, and a token is at least a byte


@dataclass(frozen=True)
class Story:
    """Sentences (one a panel), tokens decoded, seconds of prefill (the prompt's pass) and decoding, prompt tokens."""

    sentences: tuple[str, ...] = ()
    tokens_run: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    prompt_tokens: int = 0


def opening(prompt: str) -> str:
    """How every sentence begins: 'The fox' for 'a fox and a red balloon', 'The' where no short subject is found."""
    subject = re.split(r"[,.;:!?]| (?:and|in|on|at|with|who|that|of|under|by|near|finds?|is|has) ", prompt.strip())[0]
    bare = DETERMINER.sub("", subject)
    words = bare.split()
    if not 1 <= len(words) <= 3 or any(DETERMINER.match(f"{word} ") for word in words):
        return "The"
    is_name = bare == subject and words[0][0].isupper()
    begins = " ".join(words if is_name else ["The", *words])
    return begins if len(begins.encode()) <= MAX_OPENING_BYTES else "The"


def prompt_ids(tokenizer, prompt: str) -> list[int]:
    """The prompt's tokens, as they stand in the frame."""
    return _ids(tokenizer, " " + " ".join(prompt.split()))


def check_context(tokenizer, config, prompt: str, n_panels: int, llm_tokens: int) -> None:
    """Raise FieldError if frame, prompt and story are longer than the context of the LLM of that configuration."""
    context = getattr(config, "max_position_embeddings", None)
    begins = len(_ids(tokenizer, f"\n{n_panels}. {opening(prompt)}")) + 1
    read = len(tokenizer(FRAME).input_ids) + len(prompt_ids(tokenizer, prompt)) + begins * n_panels
    if context and read + llm_tokens > context:
        raise FieldError(f"llm_tokens = {llm_tokens} and the {read} of prompt and frame are too many, the LLM has "
                         f"{context}: shorten the prompt or lower llm_tokens", "llm_tokens")


class StoryWriter:
    """A causal LM in the few-shot frame.

    model, tokenizer: of transformers. keep_prefix: compute the frame's keys and values once and copy them for each
    story, instead of once a story.
    """

    def __init__(self, model, tokenizer, keep_prefix: bool = True):
        self.model, self.tokenizer, self.keep_prefix = model.eval(), tokenizer, keep_prefix
        texts = [_plain(t) for t in tokenizer.convert_ids_to_tokens(range(model.config.vocab_size))]
        ends = np.ravel(model.generation_config.eos_token_id)  # none, one or several
        self._ends_line = {*ends.tolist(), *(i for i, text in enumerate(texts) if "\n" in text)}
        self._stops = self._ends_line.union(i for i, text in enumerate(texts) if set(STOP_MARKS) & set(text))
        words = [text[1:] if text.startswith(" ") else "" for text in texts]
        if not any(map(str.isalpha, words)):  # a tokenizer without leading spaces
            words = texts
        self._not_first = torch.tensor([not word.isalpha() or word.lower() in NOT_FIRST for word in words])
        self._frame_ids = tokenizer(FRAME).input_ids
        self._frame_cache = DynamicCache(config=model.config)
        if keep_prefix:
            self._forward(self._frame_ids, self._frame_cache)

    def write(self, prompt: str, n_panels: int, llm_tokens: int, seed: int, exact_tokens: bool = False,
              on_token: Callable[[int, int], None] = lambda done, total: None) -> Story:
        """`n_panels` sentences about `prompt` in at most (`exact_tokens`: exactly) `llm_tokens` decoded tokens.

        A sentence ends at its stop mark or at its share: the tokens left over the panels left. on_token(done, total)
        is called after each token. Raises ValueError if the prompt is longer than the model's context.
        """
        check_context(self.tokenizer, self.model.config, prompt, n_panels, llm_tokens)
        begins, start = opening(prompt), prompt_ids(self.tokenizer, prompt)
        generator = torch.Generator().manual_seed(seed)
        marks, sentences, used, done = [time.monotonic()], [], [], 0
        cache = copy.deepcopy(self._frame_cache)  # holds the frame, or nothing yet
        unread = start if self.keep_prefix else self._frame_ids + start
        for panel in range(n_panels):
            logits = self._forward(unread + _ids(self.tokenizer, f"\n{panel + 1}. {begins}"), cache)
            marks.append(time.monotonic())
            tokens, share = [], (llm_tokens - done) // (n_panels - panel)
            for token in self._decode(logits, cache, share, used, generator, exact_tokens):
                tokens.append(token)
                done += 1
                on_token(done, llm_tokens)
            used.append(tokens[0])
            unread = [] if tokens[-1] in self._ends_line else tokens[-1:]
            sentences.append(" ".join((begins + self.tokenizer.decode(tokens, skip_special_tokens=True)).split()))
        return Story(tuple(sentences), done, marks[1] - marks[0], time.monotonic() - marks[1], len(start))

    def _forward(self, ids: list[int], cache) -> torch.Tensor:
        """Logits (vocabulary,) after `ids`, on the CPU; `cache` grows in place."""
        with torch.inference_mode():
            ids = torch.tensor([ids], device=self.model.device)
            return self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].float().cpu()

    def _decode(self, logits, cache, share: int, used: list[int], generator, exact: bool) -> Iterator[int]:
        """One sentence's tokens, top-k sampled: `share` of them, or fewer if a stop mark comes and `exact` is false.

        used: the first tokens of earlier sentences, which this one does not begin with.
        """
        logits = logits.masked_fill(self._not_first, -torch.inf)
        logits[used] = -torch.inf
        for i in range(share):
            values, ids = logits.topk(min(TOP_K, int(logits.isfinite().sum())))
            token = ids[torch.multinomial((values / TEMPERATURE).softmax(0), 1, generator=generator)].item()
            yield token
            if i + 1 == share or (token in self._stops and not exact):
                return
            logits = self._forward([token], cache)


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def _plain(token: str) -> str:
    """A vocabulary entry with byte-level BPE's and SentencePiece's signs for space and newline resolved."""
    return (token or "").replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n").replace("<0x0A>", "\n")
