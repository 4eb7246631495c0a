"""A conversation with one or several checkpoints, as the command ``chat`` holds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from openbezoar.errors import UserError

if TYPE_CHECKING:
    from openbezoar.llm import Sampling
    from openbezoar.llm.local import LocalLLM
    from openbezoar.rows.records import Turn


HELP = """/system TEXT   another system message, and a new conversation; without TEXT: show it
/system default  the trained system message again
/reset         forget the conversation
/save FILE     write the conversation to a new file, JSON lines
/exit          end (so does Ctrl-D); Ctrl-C stops an answer
A line that ends in \\ goes on with the next one."""


TRAINED = "default"


@dataclass
class Talk:
    """One model's side of the conversation; its own answers are what it goes on from."""

    name: str
    local: LocalLLM
    turns: list[Turn] = field(default_factory=list)


class ChatSession:
    """A conversation with one model or several. ``write`` takes pieces of answers, ``tell`` lines
    of news, ``think`` pieces of thoughts, which are not sent back.
    """

    def __init__(
        self,
        talks: Sequence[Talk],
        sampling: Sampling,
        seed: int,
        system: str | None,
        write: Callable[[str], None],
        tell: Callable[[str], None],
        think: Callable[[str], None] = lambda piece: None,
    ) -> None:
        self.talks, self.sampling, self.seed, self.system = talks, sampling, seed, system
        self.write, self.tell, self.think = write, tell, think
        self.messages = 0
        self.stopped = False

    def run(self, typed: Callable[[], str]) -> None:
        """Take messages and commands until there are no more."""
        while True:
            try:
                line = typed()
                if line == "/exit":
                    return
                if line.startswith("/"):
                    self.command(line)
                elif line:
                    self.send(line)
            except EOFError:
                return
            except KeyboardInterrupt:
                self.tell("\n(/exit or Ctrl-D ends)")
            except UserError as error:
                self.tell(str(error))

    def command(self, line: str) -> None:
        """Carry out a line that begins with a slash. Raises UserError for an unknown one."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word == "/help":
            self.tell(HELP)
        elif word == "/reset":
            self._forget("forgotten")
        elif word == "/system" and rest:
            self.system = None if rest == TRAINED else rest
            self._forget("a new conversation with this system message")
        elif word == "/system":
            for talk in self.talks:
                self.tell(f"{talk.name}: {self._system_of(talk)}")
        elif word == "/save" and rest:
            self.save(Path(rest).expanduser())
        else:
            raise UserError(f"{line}: no such command; /help lists them")

    def _forget(self, news: str) -> None:
        for talk in self.talks:
            talk.turns.clear()
        self.messages = 0
        self.tell(news)

    def _system_of(self, talk: Talk) -> str:
        default = talk.local.formatter.default_system
        text = self.system if self.system is not None else default
        return "(what its template says)" if text is None else text or "(none)"

    def send(self, text: str) -> None:
        """One message to every model, one answer after another. An interrupt stops the answer that
        is being given; what was said of it stays.
        """
        from openbezoar.rows.records import Turn

        self.messages += 1
        for talk in self.talks:
            if len(self.talks) > 1:
                self.write(f"[{talk.name}]\n")
            before = list(talk.turns)
            talk.turns.append(Turn("user", text))
            try:
                answer = self._answer(talk)
            except BaseException:
                talk.turns[:] = before
                raise
            if answer is None:
                talk.turns.pop()
            else:
                talk.turns.append(Turn("assistant", answer))

    def _answer(self, talk: Talk) -> str | None:
        """The answer to a talk's last turn; None if it was stopped before a word was said."""
        from openbezoar.stats.seeds import step_seed

        turns = self._fitted(talk)
        pieces: list[str] = []

        def say(piece: str) -> None:
            pieces.append(piece)
            self.write(piece)

        self.stopped = False
        try:
            completion = talk.local.answer(
                turns, self.sampling, step_seed(self.seed, "chat", self.messages), say, self.think
            )
        except KeyboardInterrupt:
            self.stopped = True
        self.write("\n\n" if len(self.talks) > 1 else "\n")
        if self.stopped:
            self.tell("(stopped)")
        elif completion.finish == "length":
            where = (
                "in a thought, before a word was said"
                if completion.thoughts and not completion.text
                else f"after {completion.tokens} tokens"
            )
            self.tell(f"(cut off {where}: --max-new-tokens)")
        elif not completion.text:
            self.tell("(an empty answer)")
        if not self.stopped:
            return completion.text
        return "".join(pieces) if pieces else None

    def _fitted(self, talk: Talk) -> list[Turn]:
        """The talk as it is sent; its oldest exchanges are dropped, and told, until an answer has
        room. Raises UserError if the last message alone is too long.
        """
        from openbezoar.rows.records import Turn

        head = [] if self.system is None else [Turn("system", self.system)]
        room, dropped = talk.local.window - self.sampling.max_new_tokens, 0
        while (n := len(talk.local.formatter.prompt_ids([*head, *talk.turns]))) > room:
            if len(talk.turns) < 3:
                raise UserError(
                    f"{talk.name}: the message takes {n} tokens with the prompt, and there is room for {room} besides"
                    " the answer; shorten it"
                )
            del talk.turns[:2]
            dropped += 2
        if dropped:
            self.tell(f"({talk.name}: the {dropped} oldest messages are left out; it reads {talk.local.window} tokens)")
        return [*head, *talk.turns]

    def save(self, path: Path) -> None:
        """Write the conversation, a line a model. Raises UserError if the file is there already or
        cannot be written.
        """
        import json
        from dataclasses import asdict

        rows = []
        for talk in self.talks:
            system = self.system if self.system is not None else talk.local.formatter.default_system
            head = [] if system is None else [{"role": "system", "content": system}]
            settings = {
                name: value
                for name, value in asdict(self.sampling).items()
                if name in ("temperature", "top_p", "max_new_tokens")
            }
            rows.append(
                {
                    "model": talk.name,
                    "messages": [*head, *(turn.as_dict() for turn in talk.turns)],
                    "seed": self.seed,
                    **settings,
                }
            )
        try:
            with path.open("x", encoding="utf-8") as out:
                out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except FileExistsError:
            raise UserError(f"{path}: there is such a file already; name another") from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; name another file") from None
        self.tell(f"saved: {path}")
