"""Whether a server cuts prompts to its window without a word. Reads and writes nothing.

Ollama does so where a prompt is longer than its num_ctx: the beginning or the oldest turns go, and the
answer comes as if nothing were missing. It shows in the counts that it tells: prompts of different
lengths have the same number of tokens, which is the window's or half of it with two more (its llama.cpp
runner keeps 4 tokens and half of the rest: 2,050 of 4,096).
"""

from __future__ import annotations

import threading

CUT = "to a prompt that it seems to have cut to its window"
SMALLEST, UNIT, BESIDE = 1024, 256, (0, 2)  # tokens: what is kept is so many at least, a multiple, and what beside it
LONGER = 1.25  # times: of two texts that differ so much, both cannot have the same number of tokens but by chance


class CutPrompts:
    """What the counts of one server tell, for all threads."""

    def __init__(self) -> None:
        self._shortest: dict[int, int] = {}  # characters of the shortest prompt that had so many tokens
        self._lock = threading.Lock()

    def heard(self, tokens: int, characters: int) -> bool:
        """Whether a prompt of so many characters, of which the server says that it read so many tokens, seems cut."""
        if tokens < SMALLEST or tokens % UNIT not in BESIDE:
            return False
        with self._lock:
            shortest = self._shortest[tokens] = min(characters, self._shortest.get(tokens, characters))
        return characters > LONGER * shortest
