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
NOT_FIRST = frozenset(
    word
    for words in ("and or of who that which", "is are was were", "in on at with to from by for", "the a an")
    for word in words.split()
)
STOP_MARKS = ".!?\n"
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
    return tokenizer(" " + " ".join(prompt.split()), add_special_tokens=False).input_ids


def check_context(config, tokenizer, prompt: str, n_panels: int, llm_tokens: int) -> None:
    """Raise FieldError if frame, prompt and story are longer than the context of the LLM of that configuration."""
    context = getattr(config, "max_position_embeddings", None)
    begins = tokenizer(f"\n{n_panels}. {opening(prompt)}", add_special_tokens=False).input_ids
    read = len(tokenizer(FRAME).input_ids) + len(prompt_ids(tokenizer, prompt)) + (len(begins) + 1) * n_panels
    if context and read + llm_tokens > context:
        raise FieldError(
            f"llm_tokens = {llm_tokens} and the {read} that prompt and frame take are {read + llm_tokens} tokens, "
            f"the LLM has {context}: shorten the prompt or lower llm_tokens", "llm_tokens")


class StoryWriter:
    """A causal LM in the few-shot frame.

    model, tokenizer: of transformers. keep_prefix: compute the frame's keys and values once and copy them for each
    story, instead of once a story.
    """

    def __init__(self, model, tokenizer, keep_prefix: bool = True):
        self.model, self.tokenizer, self.keep_prefix = model.eval(), tokenizer, keep_prefix
        texts = [_plain(t) for t in tokenizer.convert_ids_to_tokens(range(model.config.vocab_size))]
        stop = [any(mark in text for mark in STOP_MARKS) for text in texts]
        starts_word = [t[:1] == " " and t[1:].isalpha() and t[1:].lower() not in NOT_FIRST for t in texts]
        if not any(starts_word):  # a tokenizer without leading spaces
            starts_word = [t.isalpha() and t.lower() not in NOT_FIRST for t in texts]
        self._stop = torch.tensor(stop)
        self._stop[_end_ids(model)] = True
        self._starts_word = torch.tensor(starts_word)
        self._frame_ids = tokenizer(FRAME).input_ids
        self._frame_cache = DynamicCache(config=model.config)
        if keep_prefix:
            self._forward(self._frame_ids, self._frame_cache)

    def write(
        self,
        prompt: str,
        n_panels: int,
        llm_tokens: int,
        seed: int,
        exact_tokens: bool = False,
        on_token: Callable[[int, int], None] | None = None,
    ) -> Story:
        """`n_panels` sentences about `prompt` in at most (`exact_tokens`: exactly) `llm_tokens` decoded tokens.

        A sentence ends at its stop mark or at its share: the tokens left over the panels left. on_token(done, total)
        is called after each token. Raises ValueError if the prompt is longer than the model's context.
        """
        check_context(self.model.config, self.tokenizer, prompt, n_panels, llm_tokens)
        start = prompt_ids(self.tokenizer, prompt)
        generator = torch.Generator().manual_seed(seed)
        began = time.monotonic()
        cache = copy.deepcopy(self._frame_cache)  # holds the frame, or nothing yet
        frame = [] if self.keep_prefix else self._frame_ids
        logits = self._forward(frame + start + self._ids(f"\n1. {opening(prompt)}"), cache)
        prefilled = time.monotonic()
        sentences, used, done = [], [], 0
        for panel in range(n_panels):
            share = (llm_tokens - done) // (n_panels - panel)
            tokens = []
            for token in self._decode(logits, cache, share, used, generator, exact_tokens):
                tokens.append(token)
                done += 1
                if on_token:
                    on_token(done, llm_tokens)
            used.append(tokens[0])
            sentences.append(self._sentence(prompt, tokens))
            if panel + 1 < n_panels:
                last = [] if self._ends_line(tokens[-1]) else tokens[-1:]
                logits = self._forward(last + self._ids(f"\n{panel + 2}. {opening(prompt)}"), cache)
        return Story(tuple(sentences), done, prefilled - began, time.monotonic() - prefilled, len(start))

    def perplexity(self, text: str) -> float:
        """exp of the mean negative log likelihood a token of `text`, the first token given."""
        ids = torch.tensor([self._ids(text)], device=self.model.device)
        with torch.inference_mode():
            logits = self.model(ids).logits[0, :-1].float()
        return torch.nn.functional.cross_entropy(logits, ids[0, 1:]).exp().item()

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _forward(self, ids: list[int], cache) -> torch.Tensor:
        """Logits (vocabulary,) after `ids`, on the CPU; `cache` grows in place."""
        with torch.inference_mode():
            ids = torch.tensor([ids], device=self.model.device)
            output = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[0, -1].float().cpu()

    def _decode(self, logits, cache, share: int, used: list[int], generator, exact: bool) -> Iterator[int]:
        """One sentence's tokens: `share` of them, or fewer if a stop mark comes and `exact` is false."""
        for i in range(share):
            token = self._sample(logits, generator, None if i else used)
            yield token
            if i + 1 == share or (self._stop[token] and not exact):
                return
            logits = self._forward([token], cache)

    def _sample(self, logits, generator, used_first=None) -> int:
        """Top-k sampling; `used_first` (a sentence's first token only): the first tokens of earlier sentences."""
        if used_first is not None:
            logits = logits.masked_fill(~self._starts_word, -torch.inf)
            logits[used_first] = -torch.inf
        values, ids = logits.topk(min(TOP_K, int(logits.isfinite().sum())))
        return ids[torch.multinomial((values / TEMPERATURE).softmax(0), 1, generator=generator)].item()

    def _sentence(self, prompt: str, tokens: list[int]) -> str:
        text = opening(prompt) + self.tokenizer.decode(tokens, skip_special_tokens=True)
        return " ".join(text.split())

    def _ends_line(self, token: int) -> bool:
        return token in _end_ids(self.model) or "\n" in _plain(self.tokenizer.convert_ids_to_tokens(token))


def _plain(token: str) -> str:
    """A vocabulary entry with byte-level BPE's and SentencePiece's signs for space and newline resolved."""
    return (token or "").replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n").replace("<0x0A>", "\n")


def _end_ids(model) -> list[int]:
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
