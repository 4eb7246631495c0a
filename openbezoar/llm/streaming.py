"""An answer as it comes: pieces of text that are never taken back. Reads and writes nothing.

What is held back: half a character, white space at the end, and whatever may still become a
stop string or the mark of a thought. So the pieces together are the text that the same call
would have given at once; thoughts are told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openbezoar.dialogue import thoughts


class Stream:
    """Tells the text of a growing list of token ids piece by piece.

    decode: token ids → text, special tokens left out. stop: strings that end the answer. opened:
    the mark of a thought that the prompt ended in. think: takes the pieces of thoughts.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[str],
        say: Callable[[str], None],
        opened: str = "",
        think: Callable[[str], None] = lambda piece: None,
    ) -> None:
        self.decode, self.stop, self.say, self.opened, self.think = decode, tuple(stop), say, opened, think
        self.text = ""  # what was said
        self.thought = ""

    def feed(self, ids: Sequence[int]) -> None:
        """Say what has become certain; ``ids`` are all tokens so far."""
        text = self.decode(ids)
        cut = min((text.find(s) for s in self.stop if s in text), default=-1)
        if cut < 0:
            held = max((thoughts.begun(text, stop) for stop in self.stop), default=0)
            cut = len(text) - max(held, thoughts.held(text))
        reply = thoughts.split(self.opened + text[:cut].rstrip("\ufffd"))
        if reply.thoughts.startswith(self.thought) and len(reply.thoughts) > len(self.thought):
            self.think(reply.thoughts[len(self.thought) :])
            self.thought = reply.thoughts
        self._say(reply.answer.strip())

    def finish(self, text: str) -> None:
        """Say the rest of the whole text."""
        self._say(text)

    def _say(self, text: str) -> None:
        if text.startswith(self.text) and len(text) > len(self.text):
            self.say(text[len(self.text) :])
            self.text = text
