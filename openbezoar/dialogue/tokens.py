"""What a tokenizer puts around a text by itself: a beginning, which causal models want, and an end,
which none does. Reads and writes nothing.

A beginning (BOS, or what a family has in its place) is what models were trained with. An end
(EOS, SEP) says that there is nothing more to come, so neither a text that a model goes on
with nor a context whose continuation is scored may have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PROBE = "a"


@dataclass(frozen=True)
class Frame:
    """Ids that a tokenizer puts before and after every text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> Frame:
        """A tokenizer's own."""
        whole, bare = tuple(tokenizer(PROBE).input_ids), tuple(tokenizer(PROBE, add_special_tokens=False).input_ids)
        for start in range(len(whole) - len(bare) + 1) if bare else ():
            if whole[start : start + len(bare)] == bare:
                return cls(whole[:start], whole[start + len(bare) :])
        # The text reads otherwise beside special tokens: only known ones are told from it.
        return cls(
            *(
                known if known == (token,) else ()
                for known, token in ((whole[:1], tokenizer.bos_token_id), (whole[-1:], tokenizer.eos_token_id))
            )
        )

    def ids(self, tokenizer: Any, text: str) -> list[int]:
        """A text's ids with the beginning and without the end."""
        ids = list(tokenizer(text).input_ids)
        return ids[: len(ids) - len(self.after)]
