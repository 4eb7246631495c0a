"""``openbezoar chat``: answers as they come, conversations, commands, and what a terminal is spared."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbezoar.cli.app import main
from openbezoar.cli.chat import _write
from openbezoar.dialogue.prompt import STOP, SYSTEM
from openbezoar.errors import UserError
from openbezoar.llm import Completion, Sampling
from openbezoar.llm.local import LocalLLM
from openbezoar.llm.streaming import Stream
from openbezoar.models.references import Checkpoint, open_checkpoint
from openbezoar.people.chat import ChatSession, Talk
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.records import Turn, read_jsonl


@pytest.fixture(scope="module")
def local(tiny: Path) -> LocalLLM:
    return LocalLLM(Checkpoint("tiny", str(tiny), (), "none", "float32", PromptSpec()))


class Formatter:
    """Counts a token a word."""

    default_system = SYSTEM

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        return [0 for turn in turns for _ in turn.content.split()]


class Scripted:
    """A model that says what it is told to, word by word."""

    window = 40

    def __init__(self, *answers: Any) -> None:
        self.formatter, self.answers, self.asked = Formatter(), list(answers), []
        self.seeds: list[int] = []

    def answer(
        self,
        turns: Sequence[Turn],
        sampling: Sampling,
        seed: int,
        say: Callable[[str], None],
        think: Callable[[str], None],
    ) -> Completion:
        self.asked.append([(t.role, t.content) for t in turns])
        self.seeds.append(seed)
        text = self.answers.pop(0)
        for word in text.split("|"):
            if word == "INTERRUPT":
                raise KeyboardInterrupt
            say(word)
        return Completion(text.replace("|", ""), "stop", 1, 1)


def session(*models: Scripted, system: str | None = None, seed: int = 0) -> tuple[ChatSession, list[str], list[str]]:
    said: list[str] = []
    told: list[str] = []
    talks = [Talk(f"m{k}", model) for k, model in enumerate(models)]  # type: ignore[arg-type]
    return ChatSession(talks, Sampling(10, 0.7, 0.95), seed, system, said.append, told.append), said, told


def typed(*lines: str) -> Callable[[], str]:
    rest: Iterator[str] = iter(lines)

    def next_line() -> str:
        for line in rest:
            if line == "^C":
                raise KeyboardInterrupt
            return line
        raise EOFError

    return next_line


# ----------------------------------------------------------------------------- streaming


def test_what_is_streamed_is_what_chat_answers(local: LocalLLM) -> None:
    for seed, temperature in ((0, 0.0), (1, 1.5), (2, 1.0), (3, 2.0)):
        talk, drawn = [Turn("user", f"Say {seed}.")], Sampling(48, temperature, 0.98)
        pieces: list[str] = []
        streamed = local.answer(talk, drawn, seed, pieces.append)
        (whole,) = local.chat([talk], drawn, [seed])
        assert streamed == whole and "".join(pieces) == whole.text
        assert temperature == 0 or len(pieces) > 5, "an answer comes in pieces"


def test_an_interrupt_in_the_middle_of_an_answer_leaves_the_model_usable(local: LocalLLM) -> None:
    talk, drawn = [Turn("user", "Go on.")], Sampling(48, 1.0)
    (whole,) = local.chat([talk], drawn, [5])
    pieces: list[str] = []

    def say(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local.answer(talk, drawn, 5, say)
    assert len(pieces) == 3 and whole.text.startswith("".join(pieces))
    assert local.chat([talk], drawn, [5]) == [whole]


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="#: \nSystemé😀x", max_size=60),
    cut=st.integers(0, 60),
    stop=st.sampled_from(["### System:", "xx", " \n"]),
)
def test_pieces_are_never_taken_back_and_never_hold_a_stop_string(text: str, cut: int, stop: str) -> None:
    whole = text[:cut] + stop + text[cut:]
    raw = whole.encode()
    pieces: list[str] = []
    stream = Stream(lambda ids: bytes(ids).decode("utf-8", "replace"), (stop,), pieces.append)
    for n in range(1, len(raw) + 1):
        stream.feed(list(raw[:n]))
    answer = whole[: whole.find(stop)].strip()
    assert answer.startswith("".join(pieces))
    stream.finish(answer)
    assert "".join(pieces) == answer


def test_a_release_s_own_template_keeps_the_trained_stop_strings(tiny: Path, tmp_path: Path) -> None:
    import shutil

    from openbezoar.verbs.release.work import write_tokenizer

    trained = Checkpoint("tiny", str(tiny), (), "none", "float32", PromptSpec())
    shutil.copytree(tiny, tmp_path / "release")
    (tmp_path / "release" / "tokenizer_config.json").unlink()
    formatter = write_tokenizer(trained, tmp_path / "release")
    released = LocalLLM(open_checkpoint(str(tmp_path / "release"))).formatter
    talk = [Turn("user", "Hello"), Turn("assistant", "Hi."), Turn("user", "Who?")]
    assert released.stop == STOP == formatter.stop and released.prompt_ids(talk) == formatter.prompt_ids(talk)
    assert LocalLLM(open_checkpoint(str(tiny))).formatter.stop == ()


# --------------------------------------------------------------------------- conversation


def test_each_model_goes_on_from_its_own_answers_with_the_same_seed() -> None:
    one, two = Scripted("red|.", "blue."), Scripted("green.", "grey.")
    chat, said, _ = session(one, two, seed=9)
    chat.run(typed("A colour?", "", "Another?"))
    assert "".join(said) == "[m0]\nred.\n\n[m1]\ngreen.\n\n[m0]\nblue.\n\n[m1]\ngrey.\n\n"
    assert one.asked[1] == [("user", "A colour?"), ("assistant", "red."), ("user", "Another?")]
    assert two.asked[1][1] == ("assistant", "green.")
    assert one.seeds == two.seeds and one.seeds[0] != one.seeds[1]


def test_ctrl_c_stops_an_answer_and_not_the_program_and_what_was_said_stays() -> None:
    model = Scripted("half an|INTERRUPT| answer", "INTERRUPT", "whole")
    chat, said, told = session(model)
    chat.run(typed("one", "^C", "two", "three"))
    assert "".join(said) == "half an\n\nwhole\n"
    assert model.asked[2] == [("user", "one"), ("assistant", "half an"), ("user", "three")]
    assert told == ["(stopped)", "\n(/exit or Ctrl-D ends)", "(stopped)"]


def test_the_oldest_exchange_is_dropped_and_told_when_the_conversation_is_too_long() -> None:
    model = Scripted("four words are here", "short", "end")
    chat, _, told = session(model, system="be brief")
    chat.run(typed("w " * 20, "v " * 4, "u " * 6))
    assert [len(asked) for asked in model.asked] == [2, 2 + 2, 2 + 2]
    assert model.asked[2][0] == ("system", "be brief") and model.asked[2][1] == ("user", "v " * 4)
    assert told == ["(m0: the 2 oldest messages are left out; it reads 40 tokens)"]


def test_a_message_that_is_too_long_alone_is_told_in_one_line_and_forgotten() -> None:
    model = Scripted("fine")
    chat, _, told = session(model)
    chat.run(typed("w " * 50, "short"))
    assert told == [
        "m0: the message takes 50 tokens with the prompt, and there is room for 30 besides the answer; shorten it"
    ]
    assert model.asked == [[("user", "short")]]


def test_commands_change_the_system_message_forget_save_and_end(tmp_path: Path) -> None:
    model = Scripted("a", "b", "c")
    chat, _, told = session(model)
    file = tmp_path / "talk.jsonl"
    chat.run(
        typed(
            "/system",
            "one",
            "/system Be rude.",
            "/system",
            "two",
            f"/save {file}",
            f"/save {file}",
            "/reset",
            "/system default",
            "three",
            "/nonsense",
            "/help",
            "/exit",
            "never",
        )
    )
    assert model.asked == [[("user", "one")], [("system", "Be rude."), ("user", "two")], [("user", "three")]]
    assert list(read_jsonl(file)) == [
        {
            "model": "m0",
            "messages": [
                {"role": "system", "content": "Be rude."},
                {"role": "user", "content": "two"},
                {"role": "assistant", "content": "b"},
            ],
            "seed": 0,
            "max_new_tokens": 10,
            "temperature": 0.7,
            "top_p": 0.95,
        }
    ]
    assert f"m0: {SYSTEM}" in told and "m0: Be rude." in told and f"saved: {file}" in told
    assert any("such a file already" in line for line in told) and any(
        "/nonsense: no such command" in line for line in told
    )


def test_a_terminal_gets_no_escapes_and_a_pipe_gets_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    text = "red \x1b[31m\x1b]0;title\x07 \x9b2J \u202e\t10\u00a0km,\u3000end\n"
    for stream, wanted in (
        (Terminal(), "red \\x1b[31m\\x1b]0;title\\x07 \\x9b2J \\u202e\t10\u00a0km,\u3000end\n"),
        (io.StringIO(), text),
    ):
        monkeypatch.setattr(sys, "stdout", stream)
        _write(text)
        monkeypatch.undo()
        assert stream.getvalue() == wanted


# -------------------------------------------------------------------------------- command


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["chat", *arguments])
    return int(end.value.code or 0)


def test_one_prompt_gives_one_answer_on_stdout_the_same_every_time(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny), "--prompt", "Name a colour.", "--max-new-tokens", "12", "--seed", "3", "--temperature", "1"]
    assert command(*arguments) == 0
    first = capsys.readouterr().out
    assert command(*arguments) == 0
    assert capsys.readouterr().out == first and first.strip()
    assert command(*arguments[:-3], "4", "--temperature", "1") == 0
    assert capsys.readouterr().out != first


def test_several_models_answer_under_their_names_and_a_pipe_brings_the_lines(
    tiny: Path, tiny_gemma: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"Hello\\\nthere\n/save {tmp_path}/talk.jsonl\n"))
    assert command(str(tiny), "--model", str(tiny), "--model", str(tiny_gemma), "--max-new-tokens", "4") == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("[") and line.endswith("]")][:3] == [
        f"[{tiny}]",
        f"[{tiny}]",
        f"[{tiny_gemma.name}]",
    ]
    saved = list(read_jsonl(tmp_path / "talk.jsonl"))
    assert len(saved) == 3 and {json.dumps(row["messages"][-2]) for row in saved} == {
        json.dumps({"role": "user", "content": "Hello\nthere"})
    }


def test_wrong_arguments_are_told_in_one_line(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 2
    assert "chat: no model" in capsys.readouterr().err
    assert command(str(tiny), "--max-new-tokens", "5000") == 2
    assert "reads 1024 tokens with its answer" in capsys.readouterr().err
    assert command(str(tiny), "--max-new-tokens", "8", "--prompt", "word " * 3000) == 2
    assert "shorten it" in capsys.readouterr().err


def test_an_interrupt_of_a_single_answer_is_130(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Completion:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalLLM, "answer", interrupted)
    assert command(str(tiny), "--prompt", "x") == 130


def test_errors_of_a_session_are_the_user_s_own() -> None:
    chat, _, _ = session(Scripted())
    with pytest.raises(UserError, match="/save: no such command"):
        chat.command("/save")
