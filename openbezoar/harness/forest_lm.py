"""The model that lm-eval talks to: its requests scored by ``openbezoar.forest.Scorer``.

Token ids are those of lm-eval's own HFLM for causal models (lm_eval 0.4.13), so that the
numbers are comparable: trailing spaces of a context move to the continuation, the two are
tokenised together and parted after the context's length, the beginning of a text is the
tokenizer's own choice, and what exceeds the window is cut from the left. Here the cuts are
counted, and an end token that the tokenizer puts after every text is left out: HFLM keeps it,
so that a context ends before its continuation begins.
Reads and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from openbezoar.dialogue import thoughts
from openbezoar.dialogue.tokens import Frame
from openbezoar.errors import DataError, ModelError
from openbezoar.forest import Scorer, TokenPath
from openbezoar.forest.trunk import no_numbers
from openbezoar.llm import Sampling
from openbezoar.llm.decoding import Decoder, Sampled, TextOf, end_tokens
from openbezoar.progress import PlainProgress, Progress

MAX_NEW_TOKENS = 256  # of an answer whose task sets no limit; HFLM's
# Generation settings of a model that leave greedy answers as they are.
GREEDY_ALIKE = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "max_length",
    "max_new_tokens",
    "use_cache",
    "cache_implementation",
    "transformers_version",
    "trust_remote_code",
    "_from_model_config",
}


class ForestLM(TemplateLM):  # type: ignore[misc]
    """A causal model of transformers behind lm-eval's interface.

    tokens: budget of one forward pass. ``truncated`` counts the requests that lost tokens
    on their left so far.
    """

    def __init__(
        self, model: Any, tokenizer: Any, tokens: int = 2048, progress: Progress | None = None, label: str = ""
    ) -> None:
        super().__init__()
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"{tokenizer.name_or_path}: the tokenizer has no end-of-sequence token; benchmarks need one"
            )
        self.model, self.tokenizer, self.tokens = model, tokenizer, tokens
        self.frame = Frame.of(tokenizer)
        self.decode = TextOf(tokenizer)
        self.scorer = Scorer(model, tokens)
        pad = tokenizer.pad_token_id
        self.decoder = Decoder(self.scorer, tokenizer.eos_token_id if pad is None else pad)
        self.progress, self.label = progress or PlainProgress(quiet=True), label
        self.max_length = int(resolve_max_length(model.config, tokenizer))
        self.truncated = 0
        self.thought = 0  # answers that thoughts were left out of

    @property
    def eot_token_id(self) -> int:
        """The end-of-sequence token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before an empty context: beginning of sequence, or else its end."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; the beginning as the tokenizer adds it, unless the text begins with it, and no end."""
        if add_special_tokens or (
            add_special_tokens is None and not has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        ):
            return self.frame.ids(self.tokenizer, string)
        return list(self.tokenizer.encode(string, add_special_tokens=False))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding gives it) of each continuation."""
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """One tree for each context, one path for each of its continuations."""
        trees: dict[tuple[int, ...], list[tuple[int, TokenPath]]] = {}
        for number, (texts, context, continuation) in enumerate(requests):
            trees.setdefault(tuple(context), []).append((number, self._path(texts, context, continuation)))
        greedy: list[list[bool]] = []
        with self.progress.bar(self.label, len(trees), "prompts") as bar:
            scores = self.scorer.logprobs(
                [tuple(path for _, path in tree) for tree in trees.values()], done=bar.advance, greedy=greedy
            )
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for tree, sums, flags in zip(trees.values(), scores, greedy, strict=True):
            for (number, _), score, flag in zip(tree, sums, flags, strict=True):
                results[number] = (float(score.sum()), flag)
                if math.isnan(results[number][0]):
                    raise no_numbers(f"{self.label}: ")
        return results

    def _path(self, texts: Any, context: list[int], continuation: list[int]) -> TokenPath:
        """The window's path: at most ``max_length`` tokens of input and one more that is only predicted."""
        if not continuation:
            raise DataError(
                f"{self.label}: the tokenizer leaves no token for the answer {texts[1] if texts else ''!r} after its"
                " question; drop the row"
            )
        whole = (context or [self.prefix_token_id]) + continuation  # spaces alone leave a context without tokens
        ids = whole[-(self.max_length + 1) :]
        self.truncated += len(ids) < len(whole)
        scored = min(len(continuation), len(ids) - 1)
        return TokenPath(ids, (False,) * (len(ids) - scored) + (True,) * scored)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in windows that do not overlap, each after one token of context."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(
                token_list=ids, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            ):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += value
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations without thoughts, up to the first of each request's stop strings."""
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(number)
        answers = [""] * len(requests)
        with self.progress.bar(self.label, len(requests), "answers") as bar:
            for numbers in alike.values():
                settings: dict[str, Any] = dict(normalize_gen_kwargs(requests[numbers[0]].args[1], MAX_NEW_TOKENS))
                stop = handle_stop_sequences(settings.pop("until"), eos=self.tokenizer.decode(self.eot_token_id))
                contexts = {n: self._generation_context(requests[n].args[0], settings["max_gen_toks"]) for n in numbers}
                batches = self._batches(contexts, settings["max_gen_toks"])
                items = [([contexts[n] for n in batch], stop, settings) for batch in batches]
                for place, texts in self.scorer.deal(self, "answered", items, _room):
                    batch = batches[place]
                    for n, text in zip(batch, texts, strict=True):
                        # Thoughts first, as lm-eval does for a think_end_token: a stop string in a
                        # thought ends no answer.
                        reply = thoughts.split(text)
                        self.thought += bool(reply.thoughts)
                        answers[n] = postprocess_generated_text(reply.answer, stop, None)
                    bar.advance(len(batch))
        return answers

    def twin(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """As of a ``Scorer``."""
        return _twin, (self.tokens,)

    def answered(self, item: tuple[list[list[int]], list[str], dict[str, Any]]) -> list[str]:
        """The whole continuations of a batch: contexts, stop strings, settings of generation."""
        contexts, stop, settings = item
        answer = self._greedy if self._plain_greedy(settings) else self._generate
        return answer(contexts, stop, settings)

    def _generation_context(self, text: str, new: int) -> list[int]:
        room = self.max_length - new
        if room <= 0:
            raise ModelError(
                f"{self.label}: the model's window of {self.max_length} tokens has no room for a prompt and {new} new"
                " tokens; leave this task out"
            )
        ids = self.tok_encode(text)
        self.truncated += len(ids) > room
        return ids[-room:]

    def _batches(self, contexts: dict[int, list[int]], new: int) -> list[list[int]]:
        """Requests of like length together; a batch and its answers fit eight times the budget of a pass."""
        batches: list[list[int]] = []
        for n in sorted(contexts, key=lambda n: (-len(contexts[n]), n)):
            # A decoding step runs one token a row, so only the cache counts, not the pass.
            if batches and (len(batches[-1]) + 1) * (len(contexts[batches[-1][0]]) + new) <= 8 * self.tokens:
                batches[-1].append(n)
            else:
                batches.append([n])
        return batches

    def _plain_greedy(self, settings: dict[str, Any]) -> bool:
        """Whether the likeliest token each time is all that a task, and the model's own generation
        settings, ask for.
        """
        own = getattr(self.model, "generation_config", None)
        own_settings: set[str] = (
            set() if own is None else {name for name, value in own.to_diff_dict().items() if value not in (None, False)}
        )
        return (
            not settings["do_sample"]
            and settings.keys() <= {"do_sample", "temperature", "max_gen_toks"}
            and own_settings <= GREEDY_ALIKE
        )

    def _greedy(self, contexts: list[list[int]], stop: list[str], settings: dict[str, Any]) -> list[str]:
        """Continuations by the decoder: beginnings that contexts share are read once, and rows that
        have ended leave the batch.
        """
        own = getattr(self.model, "generation_config", None)
        ends = (*(() if own is None else end_tokens(own)), self.eot_token_id)
        stops = _StopStrings(self.tokenizer, stop)
        rows = [Sampled.of(place, Sampling(settings["max_gen_toks"]), ends, seed=0) for place in range(len(contexts))]
        self.decoder.draw(
            [context or [self.prefix_token_id] for context in contexts], rows, lambda row: stops.among(row.ids)
        )
        return [self.decode(row.ids) for row in rows]  # an end token that is no special one is text, as in HFLM

    @torch.no_grad()
    def _generate(self, contexts: list[list[int]], stop: list[str], settings: dict[str, Any]) -> list[str]:
        """Continuations by transformers' own ``generate``, for every setting that it knows;
        contexts padded on the left.
        """
        width, pad, device = max(map(len, contexts)), self.decoder.pad, self.scorer.device
        ids = torch.tensor([[pad] * (width - len(c)) + c for c in contexts], device=device)
        mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts], device=device)
        options = {k: v for k, v in settings.items() if k not in ("max_gen_toks", "temperature", "do_sample")}
        if settings["do_sample"]:
            options["temperature"] = settings["temperature"]
            torch.manual_seed(len(contexts[0]))  # a task that samples draws the same again
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=settings["max_gen_toks"],
            do_sample=settings["do_sample"],
            pad_token_id=pad,
            stopping_criteria=StoppingCriteriaList([_StopStrings(self.tokenizer, stop, width)]),
            **options,
        )
        return [self.decode(row) for row in out[:, width:].tolist()]


def _room(item: tuple[list[list[int]], list[str], dict[str, Any]]) -> int:
    """What a batch weighs: tokens of the cache at its end."""
    contexts, _, settings = item
    return len(contexts) * (max(map(len, contexts)) + int(settings["max_gen_toks"]))


def _twin(loaded: Any, tokens: int) -> ForestLM:
    return ForestLM(loaded.model, loaded.tokenizer, tokens)


class _StopStrings(StoppingCriteria):  # type: ignore[misc]
    """Ends a row when its new text, from token ``start`` on, holds a stop string."""

    def __init__(self, tokenizer: Any, stop: list[str], start: int = 0) -> None:
        self.tokenizer, self.start = tokenizer, start
        self.stop = [s for s in stop if s]
        # A stop string may begin inside a token, so look a little further back than it is long.
        self.tail = max((len(tokenizer.encode(s, add_special_tokens=False)) for s in self.stop), default=0) + 2

    def among(self, ids: list[int]) -> bool:
        """Whether the last of these ids hold a stop string, and stand in no thought."""
        text = self.tokenizer.decode(ids[-self.tail :])
        return any(s in text for s in self.stop) and thoughts.split(self.tokenizer.decode(ids)).whole

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.tensor([self.among(row) for row in input_ids[:, self.start :].tolist()], device=input_ids.device)
