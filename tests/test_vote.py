"""Voting: what is asked, how votes are kept, what the page's server tells and refuses, and what comes of votes."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from openbezoar.cli.app import main
from openbezoar.engine import execution, graph
from openbezoar.errors import DataError, RunError
from openbezoar.judging.votes import read_votes
from openbezoar.people.ballots import Ballot, make_ballots
from openbezoar.people.outcome import numbers, preference_rows, votes_on
from openbezoar.people.server import listen, make_server
from openbezoar.people.votes import BallotQueue, VoteFile
from openbezoar.progress import PlainProgress
from openbezoar.rows.forms import to_pair
from openbezoar.rows.records import Counts, Row, read_jsonl, write_jsonl

# of MT-Bench's human votes, in their order
FIELDS = ["id", "question_id", "turn", "model_a", "model_b", "winner", "judge"]
MODELS = ("zeta-secret", "alpha-secret")


def rows(n: int = 8, models: tuple[str, ...] = MODELS, **changed: Any) -> list[Row]:
    """Answers as in a mt_bench step's answers.jsonl."""
    return [
        {
            "model": model,
            "question_id": q,
            "category": "writing" if q % 2 else "math",
            "questions": [f"Question {q}?", f"And {q} again?"],
            "turns": [f"answer {q}.1 of number {k}", f"answer {q}.2 of number {k}"],
            "finish": ["stop", "length"],
            **changed,
        }
        for k, model in enumerate(models)
        for q in range(1, n + 1)
    ]


def ballots(
    some: list[Row] | None = None, seed: int = 0, turns: tuple[int, ...] = (1, 2), models: tuple[str, ...] = MODELS
) -> list[Ballot]:
    return make_ballots(some or rows(models=models), models, seed, turns=turns, counts=Counts())


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    return tmp_path / "votes.jsonl"


@contextmanager
def poll(path: Path, some: list[Ballot] | None = None, judge: str = "expert_me") -> Iterator[BallotQueue]:
    file = VoteFile(path)
    try:
        yield BallotQueue(some or ballots(), file, judge)
    finally:
        file.close()


@contextmanager
def served(asked: BallotQueue) -> Iterator[int]:
    """The page's server in a thread; its port."""
    socket = listen(0)
    port = socket.getsockname()[1]
    server = make_server(asked, port, 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        yield port
    finally:
        server.should_exit = True
        thread.join()
        socket.close()


def ask(
    port: int, path: str, body: Any = None, host: str | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    given = {"Host": host or f"127.0.0.1:{port}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if body is not None:
        given["Content-Type"] = "application/json"
    connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), given)
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, {k.lower(): v for k, v in reply.getheaders()}, text


# ------------------------------------------------------------------------------- ballots


def test_order_and_sides_are_random_and_the_same_for_the_same_seed() -> None:
    assert ballots(rows(40)) == ballots(rows(40))
    first, other = ballots(rows(40), 0), ballots(rows(40), 1)
    assert [b.question_id for b in first] != [b.question_id for b in other]
    assert [b.question_id for b in first[::2]] != sorted(b.question_id for b in first[::2])
    left = [b.a.model for b in first[::2]]
    assert 8 < left.count(MODELS[0]) < 32


def test_the_second_turn_follows_the_first_on_the_same_sides_with_the_whole_talk() -> None:
    made = ballots()
    for one, two in zip(made[::2], made[1::2], strict=True):
        assert (one.turn, two.turn) == (1, 2) and one.question_id == two.question_id and one.a.model == two.a.model
        assert len(one.questions) == len(one.a.turns) == 1 and len(two.questions) == len(two.b.turns) == 2


def test_what_leaves_nothing_to_choose_is_left_out_and_counted() -> None:
    some = rows(4)
    some[0]["turns"][0] = some[4]["turns"][0] + "\n"
    some[1]["finish"] = ["stop", "error"]
    del some[-1]
    counts = Counts()
    made = make_ballots(some, MODELS, 0, turns=(1, 2), counts=counts)
    assert len(made) == 8 - 1 - 1 - 2
    assert counts.by_reason == {
        "turns with the same answer by both": 1,
        "turns that one of the two has no answer to": 1,
        "questions that one of the two has no answer to": 1,
    }


def test_a_ballot_s_name_depends_on_texts_and_not_on_sides() -> None:
    one, two = ballots(seed=0), ballots(seed=1)
    assert {b.id for b in one} == {b.id for b in two} and len({b.id for b in one}) == len(one)
    changed = rows()
    changed[0]["turns"] = ["other", "texts"]
    assert len({b.id for b in one} & {b.id for b in ballots(changed)}) == len(one) - 2


# --------------------------------------------------------------------------------- votes


def test_votes_have_the_fields_of_mt_bench_s_and_are_on_disk_at_once(votes: Path) -> None:
    with poll(votes) as asked:
        for choice in ("a", "b", "tie", "bad"):
            ballot = asked.waiting[0]
            assert asked.cast(ballot.id, choice)  # type: ignore[arg-type]
            row = list(read_jsonl(votes))[-1]
            assert list(row) == FIELDS
            assert (row["question_id"], row["turn"], row["model_a"], row["model_b"]) == (
                ballot.question_id,
                ballot.turn,
                ballot.a.model,
                ballot.b.model,
            )
    found = list(read_jsonl(votes))
    assert [r["winner"] for r in found] == ["model_a", "model_b", "tie", "tie (bothbad)"]
    assert len({r["id"] for r in found}) == 4 and {r["judge"] for r in found} == {"expert_me"}


def test_agreement_reads_the_file_as_people_s_votes(votes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with poll(votes) as asked:
        for k in range(16):
            asked.cast(asked.waiting[0].id, ("a", "b", "tie", "bad")[k % 4])  # type: ignore[arg-type]
    found, unread = read_votes(votes, "expert_*")
    assert len(found) == 16 and unread == 0
    with pytest.raises(SystemExit) as end:
        main(["agreement", "--judge", str(votes), "--human", str(votes), "--json"])
    assert end.value.code == 0
    table = json.loads(capsys.readouterr().out)
    assert {r["agreement"] for r in table if r["pair"] == "judge-human"} == {1.0}


def test_a_poll_goes_on_where_it_stopped_and_asks_again_where_answers_changed(votes: Path) -> None:
    with poll(votes) as asked:
        order = [b.id for b in asked.waiting]
        for _ in range(5):
            asked.cast(asked.waiting[0].id, "a")
    with poll(votes) as asked:
        assert [b.id for b in asked.waiting] == order[5:] and len(asked.done) == 5
    changed = rows()
    for row in changed[:8]:
        row["turns"] = ["another", "answer"]
    with poll(votes, ballots(changed)) as asked:
        assert len(asked.done) == 0 and len(asked.waiting) == 16


def test_another_voter_is_asked_everything_in_the_same_file(votes: Path) -> None:
    with poll(votes) as asked:
        asked.cast(asked.waiting[0].id, "a")
    with poll(votes, judge="expert_you") as asked:
        assert len(asked.waiting) == 16 and asked.undoable is None
        asked.cast(asked.waiting[0].id, "b")
    assert [r["judge"] for r in read_jsonl(votes)] == ["expert_me", "expert_you"]


def test_undo_takes_the_last_line_out_and_asks_again_even_after_a_restart(votes: Path) -> None:
    with poll(votes) as asked:
        first, second = asked.waiting[0].id, asked.waiting[1].id
        asked.cast(first, "a")
        before = votes.read_bytes()
        asked.cast(second, "b")
    with poll(votes) as asked:
        assert not asked.undo(first), "only the last vote can be taken back"
        assert asked.undo(second) and votes.read_bytes() == before
        assert asked.waiting[0].id == second
        assert not asked.undo(second), "a second window's undo does nothing"
        assert asked.undo(first) and votes.read_bytes() == b"" and asked.undoable is None


def test_a_skipped_pair_comes_again_after_the_others(votes: Path) -> None:
    with poll(votes) as asked:
        order = [b.id for b in asked.waiting]
        assert asked.skip(order[0]) and asked.state()["skipped"] == 1
        assert [b.id for b in asked.waiting] == [*order[1:], order[0]]
        assert asked.cast(order[0], "tie") and asked.state()["skipped"] == 0
        assert votes.read_text().count("\n") == 1


def test_a_vote_given_in_another_window_is_not_written_twice(votes: Path) -> None:
    with poll(votes) as asked:
        id_ = asked.waiting[0].id
        assert asked.cast(id_, "a") and not asked.cast(id_, "b") and not asked.skip(id_)
    assert [r["winner"] for r in read_jsonl(votes)] == ["model_a"]


def test_a_half_written_last_line_is_taken_out_and_a_line_without_end_is_kept(votes: Path) -> None:
    with poll(votes) as asked:
        asked.cast(asked.waiting[0].id, "a")
        asked.cast(asked.waiting[0].id, "b")
    whole = votes.read_bytes()
    votes.write_bytes(whole[:-20])
    with poll(votes) as asked:
        assert len(asked.done) == 1
        asked.cast(asked.waiting[0].id, "b")
    assert votes.read_bytes() == whole
    votes.write_bytes(whole[:-1])
    with poll(votes) as asked:
        assert len(asked.done) == 2
    assert votes.read_bytes() == whole


def test_a_file_that_holds_no_votes_or_is_in_use_is_refused_and_left_alone(votes: Path) -> None:
    votes.write_text('{"question_id": 1}\n')
    with pytest.raises(DataError, match="line 1: no field 'turn'"):
        VoteFile(votes)
    votes.write_text("a page of notes")
    with pytest.raises(DataError, match="line 1 is not JSON"):
        VoteFile(votes)
    assert votes.read_text() == "a page of notes"
    votes.write_text("oh\n{}\n")
    with pytest.raises(DataError, match="line 1 is not JSON"):
        VoteFile(votes)
    assert votes.read_text() == "oh\n{}\n"
    votes.unlink()
    with poll(votes) as asked:
        asked.cast(asked.waiting[0].id, "a")
        with pytest.raises(RunError, match="another 'openbezoar vote'"):
            VoteFile(votes)
        with closing(VoteFile(votes, read_only=True)) as looked:
            assert looked.rows == asked.votes.rows, "a look does not need the file for itself"
    with pytest.raises(RunError, match=r"Is a directory; name another file with --votes"):
        VoteFile(votes.parent)


def test_a_vote_that_the_disk_does_not_take_leaves_the_file_as_it_was_and_is_told(
    votes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with poll(votes) as asked, served(asked) as port:
        token = json.loads(ask(port, "/api/state")[2])["token"]
        first = asked.waiting[0].id
        asked.cast(first, "a")
        before = votes.read_bytes()

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        status, _, text = ask(port, "/api/vote", {"id": asked.waiting[0].id, "choice": "a"}, X_Vote_Token=token)
        monkeypatch.undo()
        assert status == 507 and "No space left" in text and votes.read_bytes() == before and len(asked.done) == 1
        assert ask(port, "/api/vote", {"id": asked.waiting[0].id, "choice": "b"}, X_Vote_Token=token)[0] == 200
    assert [r["winner"] for r in read_jsonl(votes)] == ["model_a", "model_b"]


# -------------------------------------------------------------------------------- server


def test_no_reply_names_a_model_before_the_result_is_asked_for(votes: Path) -> None:
    with poll(votes) as asked, served(asked) as port:
        replies = [ask(port, path) for path in ("/", "/vote.js", "/vote.css", "/api/state")]
        token = json.loads(replies[-1][2])["token"]
        for k in range(6):
            id_ = asked.waiting[0].id
            replies.append(ask(port, "/api/vote", {"id": id_, "choice": "ab"[k % 2]}, X_Vote_Token=token))
        replies.append(ask(port, "/api/undo", {"id": asked.undoable}, X_Vote_Token=token))
        replies.append(ask(port, "/api/skip", {"id": asked.waiting[0].id}, X_Vote_Token=token))
        assert {status for status, _, _ in replies} == {200}
        assert not any("secret" in text or "secret" in str(headers) for _, headers, text in replies)
        result = ask(port, "/api/result", {}, X_Vote_Token=token)
        assert result[0] == 200 and all(model in result[2] for model in MODELS) and json.loads(result[2])["votes"] == 5


def test_foreign_names_origins_and_requests_without_the_token_are_refused_and_change_nothing(votes: Path) -> None:
    with poll(votes) as asked, served(asked) as port:
        token = json.loads(ask(port, "/api/state")[2])["token"]
        body = {"id": asked.waiting[0].id, "choice": "a"}
        assert ask(port, "/api/state", host=f"evil.example:{port}")[0] == 403
        assert ask(port, "/", host=f"evil.example:{port}")[0] == 403
        assert ask(port, "/api/state", host="127.0.0.1")[0] == 403
        assert ask(port, "/api/vote", body)[0] == 403
        assert ask(port, "/api/vote", body, X_Vote_Token="x" * len(token))[0] == 403
        assert ask(port, "/api/vote", body, X_Vote_Token=token, Origin="http://evil.example")[0] == 403
        assert ask(port, "/api/vote", body, X_Vote_Token=token, host=f"evil.example:{port}")[0] == 403
        assert ask(port, "/api/result", {})[0] == 403
        assert ask(port, "/api/vote", {**body, "choice": "both"}, X_Vote_Token=token)[0] == 422
        assert votes.read_text() == ""
        assert ask(port, "/api/state", host=f"localhost:{port}")[0] == 200
        assert ask(port, "/api/vote", body, X_Vote_Token=token, Origin=f"http://127.0.0.1:{port}")[0] == 200
        assert ask(port, "/api/vote", body, X_Vote_Token=token)[0] == 409
        assert ask(port, "/docs")[0] == ask(port, "/openapi.json")[0] == ask(port, "/../votes.py")[0] == 404
    assert votes.read_text().count("\n") == 1


def test_every_reply_forbids_what_the_page_does_not_need(votes: Path) -> None:
    with poll(votes) as asked, served(asked) as port:
        for path in ("/", "/vote.js", "/api/state", "/nothing"):
            headers = ask(port, path)[1]
            assert (
                "default-src 'none'" in headers["content-security-policy"]
                and "unsafe" not in headers["content-security-policy"]
            )
            assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
            assert "access-control-allow-origin" not in headers
        page = "".join(ask(port, path)[2] for path in ("/", "/vote.js", "/vote.css"))
    assert "http" not in page.replace("http-equiv", "") and "innerHTML" not in page and "document.write" not in page
    assert "insertAdjacentHTML" not in page and "outerHTML" not in page


def test_the_server_listens_on_the_loopback_only_and_a_taken_port_is_told() -> None:
    from openbezoar.errors import UserError

    with listen(0) as socket:
        assert socket.getsockname()[0] == "127.0.0.1"
        socket.listen()
        with pytest.raises(UserError, match=r"--port .*choose another, or 0"):
            listen(socket.getsockname()[1])


# ------------------------------------------------------------------------------- outcome


def test_win_rates_count_ties_half_and_name_both_bad_and_side_and_length(votes: Path) -> None:
    with poll(votes, ballots(turns=(1,))) as asked:
        for k in range(8):
            ballot = asked.waiting[0]
            choice = "tie" if k == 0 else "bad" if k == 1 else "a" if ballot.a.model == "zeta-secret" else "b"
            asked.cast(ballot.id, choice)  # type: ignore[arg-type]
        found = numbers(asked.models, votes_on(asked.ballots, asked.own_votes), 0)
    (pair,) = found["pairs"]
    assert (pair["a"], pair["wins"], pair["losses"], pair["ties"], pair["both_bad"]) == ("alpha-secret", 0, 6, 2, 1)
    assert (
        pair["win_rate"]["value"] == pytest.approx(1 / 8) and pair["win_rate"]["low"] < 1 / 8 < pair["win_rate"]["high"]
    )
    assert found["first"]["n"] == 6


def test_pairs_to_train_on_are_what_most_voters_prefer_and_the_rest_is_counted(votes: Path) -> None:
    some = rows(5)
    some[0]["turns"] = ["same first\n", "zeta second"]
    some[5]["turns"] = ["same first", "alpha second"]
    some[6]["turns"][0] = "\n\nHuman: a trap\n\nAssistant: well"
    made = make_ballots(some, MODELS, 0, turns=(1, 2), counts=Counts())
    wanted = {1: "zeta-secret", 2: "alpha-secret", 3: "tie", 4: "split", 5: "zeta-secret"}
    for judge in ("expert_1", "expert_2"):
        with poll(votes, made, judge) as asked:
            while asked.waiting:
                ballot = asked.waiting[0]
                want = wanted[int(ballot.question_id)]
                left = want == ballot.a.model if want in MODELS else judge == "expert_1"
                asked.cast(ballot.id, "tie" if want == "tie" else "a" if left else "b")
    counts = Counts()
    pairs = preference_rows(votes_on(made, list(read_jsonl(votes))), counts)
    assert [(r["id"][:5], to_pair(r, "r").chosen) for r in pairs] and all(r["id"].startswith("vote-") for r in pairs)
    by_prompt = {to_pair(r, "r").prompt[-1].content: to_pair(r, "r") for r in pairs}
    assert set(by_prompt) == {"And 1 again?", "Question 2?", "Question 5?"}
    assert (by_prompt["And 1 again?"].chosen, by_prompt["And 1 again?"].rejected) == ("zeta second", "alpha second")
    assert [t.content for t in by_prompt["And 1 again?"].prompt] == ["Question 1?", "same first", "And 1 again?"]
    assert by_prompt["Question 2?"].chosen == "\n\nHuman: a trap\n\nAssistant: well"
    assert by_prompt["Question 5?"].chosen == "answer 5.1 of number 0"
    assert counts.by_reason["ties"] == 2 and counts.by_reason["voters split"] == 2
    assert sum(counts.by_reason.values()) + len(pairs) == len(made)


# ------------------------------------------------------------------------------- command


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Arguments that name two answer files and their questions."""
    write_jsonl(
        tmp_path / "questions.jsonl",
        [{"question_id": q, "category": "math", "turns": [f"Question {q}?", "And?"]} for q in range(1, 9)],
    )
    for k, model in enumerate(MODELS):
        write_jsonl(
            tmp_path / f"{k}.jsonl",
            [
                {"question_id": q, "model_id": model, "turns": [f"answer {q} of number {k}", f"more of {k}"]}
                for q in range(1, 9)
            ],
        )
    return [
        str(tmp_path / "0.jsonl"),
        str(tmp_path / "1.jsonl"),
        "--questions",
        str(tmp_path / "questions.jsonl"),
        "--votes",
        str(tmp_path / "votes.jsonl"),
    ]


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["vote", *arguments])
    return int(end.value.code or 0)


def give_votes(files: list[str], turns: str = "1") -> None:
    from openbezoar.people.ballots import answers_of_files

    answers = answers_of_files([Path(f) for f in files[:2]], Path(files[3]), Counts())
    with poll(
        Path(files[5]), make_ballots(answers, MODELS, 0, turns=(1,) if turns == "1" else (1, 2), counts=Counts())
    ) as asked:
        while asked.waiting:
            asked.cast(asked.waiting[0].id, "a" if asked.waiting[0].a.model == MODELS[0] else "b")


def test_the_command_serves_a_page_prints_where_and_ends_by_ctrl_c_with_what_was_voted(files: list[str]) -> None:
    import signal

    started = [sys.executable, "-m", "openbezoar", "vote", *files, "--no-browser"]
    process = subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:") and url.endswith("/")
        port = int(url.rstrip("/").rpartition(":")[2])
        while True:
            try:
                state = json.loads(ask(port, "/api/state")[2])
                break
            except ConnectionError:
                continue
        assert state["total"] == 16
        assert (
            ask(port, "/api/vote", {"id": state["ballot"]["id"], "choice": "a"}, X_Vote_Token=state["token"])[0] == 200
        )
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0 and out == ""
    assert "0 of 16 votes given" in told and "1 of 16 votes given" in told and "Traceback" not in told
    assert Path(files[5]).read_text().count("\n") == 1


def test_results_and_pairs_come_without_a_page(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give_votes(files)
    assert command(*files, "--result") == 0
    assert "alpha-secret against zeta-secret" in capsys.readouterr().out
    assert command(*files, "--result", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pairs"][0]["losses"] == 8
    assert command(*files, "--export", str(tmp_path / "pairs.jsonl")) == 0
    assert "8 pairs" in capsys.readouterr().out
    assert all(
        r["chosen"].endswith("number 0") and r["chosen_model"] == MODELS[0]
        for r in read_jsonl(tmp_path / "pairs.jsonl")
    )


def test_pairs_never_take_the_place_of_what_they_are_made_from(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give_votes(files)
    for file in (files[5], files[0], files[3]):
        before = Path(file).read_bytes()
        assert command(*files, "--export", file) == 2
        assert "take the place of what the pairs are made from" in capsys.readouterr().err
        assert Path(file).read_bytes() == before
    assert command(*files, "--export", str(tmp_path / "nowhere" / "x.jsonl")) == 2
    assert "No such file or directory; name another file" in capsys.readouterr().err


def test_dpo_trains_on_exported_votes(files: list[str], tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    from conftest import FAST

    give_votes(files, "both")
    assert command(*files, "--export", str(tmp_path / "voted.jsonl")) == 0
    recipe = write_recipe(
        {"dpo": {"dpo": "voted.jsonl", "model": "base", **FAST, "heldout_rows": 2, "heldout_every": 4}}
    )
    from openbezoar.recipe.file import load

    execution.execute(graph.build(load(recipe), recipe, tmp_path / "runs"), PlainProgress(quiet=True))
    manifest = json.loads((tmp_path / "runs/t/dpo/manifest.json").read_text())
    assert manifest["numbers"]["steps"] > 0 and manifest["counts"] == {}
    assert (tmp_path / "runs/t/dpo/adapter/adapter_model.safetensors").is_file()


def test_a_run_s_answers_are_found_and_its_votes_lie_beside_its_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "t"
    for name in ("talks", "other"):
        (run / name).mkdir(parents=True)
        write_jsonl(run / name / "answers.jsonl", rows(4, ("base", "sft", "dpo")))
        (run / name / "manifest.json").write_text(json.dumps({"verb": "mt_bench", "numbers": {}, "parts": {}}))
    assert command(str(run)) == 2
    assert "several mt_bench steps; choose one with --step; it has other, talks" in capsys.readouterr().err
    assert command(str(run), "--step", "talks", "--result") == 2
    told = capsys.readouterr().err
    assert f"{run}/votes/talks.jsonl: no such file of votes" in told
    made = make_ballots(rows(4, ("base", "sft", "dpo")), ("base", "dpo"), 0, turns=(1, 2), counts=Counts())
    with poll(run / "votes" / "talks.jsonl", made) as asked:
        while asked.waiting:
            asked.cast(asked.waiting[0].id, "a")
    assert command(str(run), "--step", "talks", "--result") == 0
    assert "8 of 8 votes" in capsys.readouterr().out, "by default the first and the last model are compared"
    assert command(str(run), "--step", "talks", "--result", "--models", "base", "--models", "sft") == 0
    shown = capsys.readouterr()
    assert "0 of 8 votes" in shown.out and "votes on other answers or models: 8" in shown.err
    assert command(str(run), "--step", "talks", "--models", "nobody") == 2
    assert "--models nobody: it has given no answer here; choose of base, sft, dpo" in capsys.readouterr().err
    assert command(str(run), "--step", "talks", "--models", "base") == 2
    assert "two models are needed" in capsys.readouterr().err


def test_wrong_arguments_are_told_in_one_line(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in (
        (files[:2], "answer files need their questions"),
        ([*files, "--turns", "3"], "--turns 3: expected 1, 2 or both"),
        ([*files, "--voter", "a/b"], "--voter a/b: expected letters"),
        ([str(tmp_path / "nothing")], "nothing: no such file or folder; expected a run"),
        ([str(tmp_path / "nothing"), *files[2:4]], "no such file"),
        ([*files, "--export", str(tmp_path / "x")], "no such file of votes"),
    ):
        assert command(*arguments) == 2
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1


def test_a_step_cannot_be_called_as_the_folder_of_votes(write_recipe: Callable[..., Path]) -> None:
    from openbezoar.errors import RecipeError
    from openbezoar.recipe.file import load

    with pytest.raises(RecipeError, match="its folder 'votes'"):
        load(write_recipe({"votes": {"sft": "rows.jsonl", "model": "base"}}))
