"""A text's token ids, piece by piece: a piece that was met before is not encoded again. Reads and writes nothing.

A tokenizer takes its control tokens out of a text before it looks at anything else, and encodes
what lies between them piece by piece. So the ids of a text are those of its pieces one after
another, where pieces begin with a control token. The prompts of a conversation's turns differ in
their last pieces only, and the answer stands in a piece of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

HELD = 256  # pieces: those of the longest conversations, and the headings of all
LONGEST = 20_000  # characters of a piece that is held, so that few rows of any length do not fill the memory


class PieceEncoder:
    """Ids of texts from one tokenizer, without what it puts around a text by itself."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._token = _control_token(tokenizer)
        self._held: Callable[[str], tuple[int, ...]] = lru_cache(maxsize=HELD)(self._encoded)

    def _encoded(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""
        if self._token is None:
            return list(self._encoded(text))
        ids: list[int] = []
        begin = 0
        for match in self._token.finditer(text):
            if match.start() > begin:
                ids += self._ids(text[begin : match.start()])
            begin = match.start()
        return [*ids, *self._ids(text[begin:])]

    def _ids(self, piece: str) -> tuple[int, ...]:
        return self._held(piece) if len(piece) <= LONGEST else self._encoded(piece)

    def __getstate__(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["tokenizer"])  # type: ignore[misc]


def _control_token(tokenizer: Any) -> re.Pattern[str] | None:
    """A pattern of the tokens before which a text can be cut; None where some might be another
    token, or none, beside another text.
    """
    added = [token for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.content]
    whole = [token for token in added if not token.normalized]
    if (
        not getattr(tokenizer, "is_fast", False)
        or getattr(tokenizer, "split_special_tokens", False)
        or not whole
        # A token that wants a word's border, or takes blanks before it, depends on what precedes it.
        or any(token.single_word or token.lstrip for token in whole)
    ):
        return None
    # The tokenizer takes the leftmost token, of several the longest.
    longest_first = sorted((token.content for token in whole), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))
