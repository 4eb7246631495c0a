"""The local model's sampler: greedy parity with transformers, row seeds, stop strings, exact top-p."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from openbezoar.errors import ModelError
from openbezoar.llm import Sampling
from openbezoar.llm.decoding import pick
from openbezoar.llm.local import LocalLLM
from openbezoar.models.references import Checkpoint
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.records import Turn

PROMPTS = ["What is the capital", "Write a short poem about the sea and the wind, and", "Numbers: 0 1 2"]


@pytest.fixture(scope="module", params=["tiny", "tiny_gemma"])
def local(request: pytest.FixtureRequest) -> LocalLLM:
    folder: Path = request.getfixturevalue(request.param)
    return LocalLLM(Checkpoint("m", str(folder), (), "none", "float32", PromptSpec()))


def test_greedy_answers_equal_generate_token_for_token(local: LocalLLM) -> None:
    ours = local.complete(PROMPTS, Sampling(20), [0, 0, 0])
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([local.tokenizer(prompt).input_ids], device=local.scorer.device)
        theirs = local.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False
        )[0, ids.shape[1] :]
        assert answer.text == local.tokenizer.decode(theirs, skip_special_tokens=True).strip()


def test_a_model_that_ignores_the_layout_is_found_before_it_answers(tiny: Path) -> None:
    local = LocalLLM(Checkpoint("m", str(tiny), (), "none", "float32", PromptSpec()))
    trunk = local.scorer.trunk.forward
    local.scorer.trunk.forward = lambda forest=None, attention_mask=None, **rest: trunk(**rest)
    with pytest.raises(ModelError, match="not supported"):
        local.complete(PROMPTS, Sampling(4), [0, 0, 0])


def test_a_row_does_not_depend_on_its_neighbours_or_the_batch_in_fp32(local: LocalLLM) -> None:
    sampling = Sampling(16, temperature=1.0, top_p=0.9)
    together = local.complete(PROMPTS, sampling, [5, 6, 7])
    alone = [local.complete([p], sampling, [s])[0] for p, s in zip(PROMPTS, (5, 6, 7), strict=True)]
    assert together == alone
    assert local.complete(PROMPTS[:1], sampling, [8])[0].text != together[0].text


def test_each_row_of_a_batch_is_drawn_its_own_way(local: LocalLLM) -> None:
    ways = [Sampling(20), Sampling(7, temperature=1.3, top_p=0.9), Sampling(12, temperature=0.4)]
    together = local.complete(PROMPTS, ways, [5, 6, 7])
    assert together == [local.complete([p], way, [s])[0] for p, way, s in zip(PROMPTS, ways, (5, 6, 7), strict=True)]
    assert together[0] == local.complete(PROMPTS[:1], Sampling(20), [99])[0]
    assert together[1].tokens <= 7 and together[2].tokens <= 12


def test_a_stop_string_ends_an_answer_and_is_cut_off(local: LocalLLM) -> None:
    free = local.complete(PROMPTS[1:2], Sampling(24, temperature=1.0), [3])[0].text
    stop = free[len(free) // 2 : len(free) // 2 + 3]
    stopped = local.complete(PROMPTS[1:2], Sampling(24, temperature=1.0, stop=(stop,)), [3])[0]
    assert stopped.finish == "stop"
    assert stop not in stopped.text
    assert free.startswith(stopped.text)


def test_no_token_ends_an_answer_before_its_least_length(local: LocalLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    (free,) = local.sample([[3, 4, 5]], Sampling(1), [0])
    monkeypatch.setattr(local.formatter, "stop_ids", lambda: tuple(free.ids))  # the likeliest token ends an answer
    ended, held = local.sample([[3, 4, 5], [3, 4, 5]], [Sampling(6), Sampling(6, min_new_tokens=4)], [0, 0])
    assert (ended.ids, ended.finish) == (free.ids, "stop")
    assert len(held.ids) >= 4 and not set(free.ids) & set(held.ids[:4])


def test_a_stop_string_that_is_a_token_ends_only_the_rows_that_ask_for_it(local: LocalLLM) -> None:
    name = next(iter(local.tokenizer.get_added_vocab()))
    token = local.tokenizer.get_added_vocab()[name]
    assert token in local.sample([[3]], Sampling(1, stop=(name,)), [0])[0].ends
    asked, other = local.sample([[3], [3]], [Sampling(1, stop=(name,)), Sampling(1)], [0, 0])
    assert token in asked.ends and other.ends == local.formatter.stop_ids()


def test_a_model_in_its_own_format_ends_at_each_end_token_of_its_generation_settings(
    tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "listed"
    shutil.copytree(tiny, folder)
    own = Checkpoint("m", str(folder), (), "none", "float32", PromptSpec(template="own"))
    (free,) = LocalLLM(own).sample([[3, 4, 5]], Sampling(8), [0])
    end = free.ids[3]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, end]}))
    local = LocalLLM(own)
    (row,) = local.sample([[3, 4, 5]], Sampling(8), [0])
    assert row.ids == free.ids[: free.ids.index(end) + 1] and row.finish == "stop" and row.answer_ids == row.ids[:-1]
    assert local.model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=8, do_sample=False)[0, 3:].tolist() == row.ids
    trained = LocalLLM(Checkpoint("m", str(folder), (), "none", "float32", PromptSpec()))  # ends as its release does
    assert trained.sample([[3, 4, 5]], Sampling(8), [0])[0].ids == free.ids


def test_top_p_draws_follow_the_truncated_distribution() -> None:
    logits = torch.log(torch.tensor([[0.05, 0.5, 0.15, 0.3]]))
    draws = (torch.arange(1000) + 0.5) / 1000
    picked = pick(logits.repeat(1000, 1), [Sampling(1, 1.0, 0.75)] * 1000, draws)
    # 0.5 + 0.3 reaches 0.75: only tokens 1 and 3, renormalised to 0.625 and 0.375.
    assert picked.bincount(minlength=4).tolist() == [0, 625, 0, 375]
    everything = pick(logits.repeat(1000, 1), [Sampling(1, 1.0, 1.0)] * 1000, draws).bincount(minlength=4)
    assert everything.tolist() == [50, 500, 150, 300]
    assert pick(logits.clone(), [Sampling(1, 0.0)], torch.tensor([0.9])).tolist() == [1]


def test_top_p_falls_back_to_the_whole_vocabulary_when_the_candidates_do_not_reach_it() -> None:
    logits = torch.zeros(1, 4096)  # 512 candidates hold an eighth of the mass
    picked = pick(logits.repeat(4, 1), [Sampling(1, 1.0, 0.99)] * 4, torch.tensor([0.0, 0.3, 0.6, 0.999]))
    assert len(set(picked.tolist())) == 4


def test_choice_logprobs_are_the_sum_over_the_choice_s_tokens(local: LocalLLM) -> None:
    conversation = [Turn("user", "Rate this.")]
    ((yes, no),) = local.choice_logprobs([conversation], "It is ", ["Yes]", "no]"])
    text = local.formatter.prompt_text(conversation) + "It is "
    for value, choice in ((yes, "Yes]"), (no, "no]")):
        given = local.tokenizer(text, add_special_tokens=False).input_ids
        whole = local.tokenizer(text + choice, add_special_tokens=False).input_ids
        shared = next(
            (i for i, (a, b) in enumerate(zip(given, whole, strict=False)) if a != b), min(len(given), len(whole))
        )
        logs = local.model(torch.tensor([whole], device=local.scorer.device)).logits[0].float().log_softmax(-1)
        assert value == pytest.approx(sum(float(logs[i - 1, whole[i]]) for i in range(shared, len(whole))), abs=1e-3)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_generation_passes_the_cache_under_the_name_that_the_model_asks_for(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Checkpoint("m", str(tiny), (), "none", "float32", PromptSpec())
    local = LocalLLM(checkpoint)
    wanted = local.complete(PROMPTS, Sampling(6), [0, 0, 0])
    local.answer([Turn("user", "Hi")], Sampling(4), 0, print)
    local.choice_logprobs([[Turn("user", "Hi")]], "It is", [" a", " b"])
    local.scorer.plain = True
    assert [a.text for a in local.complete(PROMPTS, Sampling(6), [0, 0, 0])] == [a.text for a in wanted]
    # transformers before 5.40 has the old name only.
    forward = local.scorer.trunk.forward
    local.scorer.trunk.forward = lambda past_key_values=None, **rest: forward(cache=past_key_values, **rest)
    old = LocalLLM(checkpoint, (local.model, local.tokenizer))
    assert old.scorer.cache_argument == "past_key_values"
    assert old.complete(PROMPTS, Sampling(6), [0, 0, 0]) == wanted


def test_a_prompt_that_fills_the_window_is_refused_alone_and_an_answer_ends_with_the_window(
    local: LocalLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [len(local.tokenizer(p).input_ids) for p in PROMPTS]
    monkeypatch.setattr(LocalLLM, "window", property(lambda self: lengths[1]))  # the longest prompt leaves no room
    assert lengths[1] == max(lengths)
    before = local.complete([PROMPTS[0]], Sampling(lengths[1] - lengths[0]), [5])[0]
    first, full, _ = local.complete(PROMPTS, Sampling(200), [5, 6, 7])
    assert (full.text, full.finish, full.refused, full.tokens) == ("", "error", "too long", 0)
    assert first == before and first.refused == ""
    assert local.complete([PROMPTS[1]], Sampling(8), [1])[0].refused == "too long"
    talks = [[Turn("user", "a " * lengths[1])], [Turn("user", "b")]]
    monkeypatch.setattr(LocalLLM, "window", property(lambda self: len(self.formatter.prompt_ids(talks[1])) + 12))
    full_, weighed = local.choice_logprobs(talks, "Rating: [[", ["1]]", "2]]"])
    assert full_ == [] and len(weighed) == 2
