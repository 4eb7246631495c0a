"""Conversations of many turns: each learnt answer stands after what inference would have sent before
it, one token is learnt once, and the tree costs what its distinct tokens cost.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from published import PUBLISHED, TALK, tokenizer_of
from test_forest import measured
from transformers import AutoModelForCausalLM

from openbezoar.dialogue.prompt import Formatter
from openbezoar.forest import Scorer, TokenPath, Tree
from openbezoar.forest.layout import lay_out
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.records import Counts, Example, Turn
from openbezoar.training.data import Renderer
from openbezoar.training.encoded import Encoded, EncodedPath, of_answers, of_turns, pack, unpack
from openbezoar.training.trees import TreeStore, tree_of

OWN = PromptSpec(template="own")
CHATML = (
    "{% for m in messages %}{{ '<s>' + m.role + '\\n' + m.content + '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
# What was thought is written before the last answer only, as reasoning models' templates have it.
FORGETS = CHATML.replace("m.content +", "(m.content.split('</think>')[-1] if not loop.last else m.content) +")


def conversation(talk: Any = TALK, **own: Any) -> Example:
    """A talk as an example, all of its answers to be learnt."""
    turns = tuple(Turn(role, content) for role, content in talk)
    learnt = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    return Example("x", turns[: learnt[-1]], turns[-1].content, tuple(learnt[:-1]), **own)


def formatter_of(tiny: Path, template: str) -> Formatter:
    from families import with_template

    return Formatter(with_template(tiny, template), OWN)


def long_talk(n: int) -> list[tuple[str, str]]:
    """``n`` exchanges of words that differ."""
    return [
        turn
        for i in range(n)
        for turn in (("user", f"Say {i} and what follows."), ("assistant", f"It is {i}, then {i + 1}."))
    ]


def learnt(path: TokenPath) -> list[int]:
    return [place for place, scored in enumerate(path.scored) if scored]


# -------------------------------------------------------------------- published templates


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_template_here_writes_what_its_family_s_writes(name: str, tiny: Path) -> None:
    family = PUBLISHED[name]
    tokenizer = tokenizer_of(tiny, family)
    made = Formatter(tokenizer, OWN)
    messages = [{"role": role, "content": content} for role, content in TALK]
    assert tokenizer.apply_chat_template(messages, chat_template=made.jinja, tokenize=False) == family.whole


@pytest.mark.parametrize("loss_on", ["all", "last"])
@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("name", PUBLISHED)
def test_masks_of_three_turns_are_those_of_a_derivation_turn_by_turn(
    name: str, system: bool, loss_on: Any, tiny: Path
) -> None:
    family, talk = PUBLISHED[name], TALK if system else TALK[1:]
    tokenizer = tokenizer_of(tiny, family)
    made = Formatter(tokenizer, OWN)
    (tree,) = Renderer(made, 1000, "drop", Counts(), loss_on).examples([conversation(talk)])
    answers = [place for place, (role, _) in enumerate(talk) if role == "assistant"]
    expected: dict[tuple[int, ...], None] = {}  # every token that is learnt, by itself and all before it
    for place in answers if loss_on == "all" else answers[-1:]:
        sent = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in talk[:place]],
            chat_template=made.jinja,
            add_generation_prompt=True,
            tokenize=False,
        )
        prompt = tokenizer(sent, add_special_tokens=False).input_ids
        whole = tokenizer(f"{sent}{family.lead}{talk[place][1]}{family.end}", add_special_tokens=False).input_ids
        assert whole[: len(prompt)] == prompt
        expected |= {tuple(whole[: end + 1]): None for end in range(len(prompt), len(whole))}
        assert tokenizer.convert_ids_to_tokens(whole[-1]) == family.end
        if family.bos and sent.startswith(family.bos):
            assert whole[0] == tokenizer.bos_token_id != whole[1], "the beginning stands twice"
    got = [tuple(path.ids[: place + 1]) for path in tree for place in learnt(path)]
    assert set(got) == set(expected)
    assert len(got) == len(expected), "a token is learnt twice"
    assert all(path.ids[learnt(path)[-1]] == made.end_ids[-1] and path.scored[-1] for path in tree)


def test_a_template_that_repeats_what_it_sent_makes_one_path_and_one_that_forgets_makes_several(tiny: Path) -> None:
    paths = {}
    for name, family in PUBLISHED.items():
        made = Formatter(tokenizer_of(tiny, family), OWN)
        (tree,) = Renderer(made, 1000, "drop", Counts()).examples([conversation()])
        paths[name] = len(tree)
    assert paths == {name: 3 if name in ("qwen3", "mistral-v0.3") else 1 for name in PUBLISHED}


def test_thoughts_are_learnt_where_they_were_thought_and_left_out_of_what_was_sent_later(tiny: Path) -> None:
    talk = [
        ("user", "Say 1."),
        ("assistant", "<think>a b</think>It is 1."),
        ("user", "Say 2."),
        ("assistant", "<think>c</think>It is 2."),
    ]
    made = formatter_of(tiny, FORGETS)
    (tree,) = Renderer(made, 1000, "drop", Counts()).examples([conversation(talk)])
    texts = [made.tokenizer.decode(path.ids) for path in tree]
    assert texts == [
        "<s>user\nSay 1.</s>\n<s>assistant\n<think>a b</think>It is 1.</s>",
        "<s>user\nSay 1.</s>\n<s>assistant\nIt is 1.</s>\n<s>user\nSay 2.</s>\n<s>assistant\n<think>c</think>It is"
        " 2.</s>",
    ]
    said = [made.tokenizer.decode([path.ids[i] for i in learnt(path)]) for path in tree]
    assert said == ["<think>a b</think>It is 1.</s>", "<think>c</think>It is 2.</s>"]


# ---------------------------------------------------------------------------- too long


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("max_length", [40, 60, 80, 100, 140])
def test_a_truncated_conversation_keeps_whole_turns_and_ends_in_a_learnt_end(
    name: str, max_length: int, tiny: Path
) -> None:
    made, counts = Formatter(tokenizer_of(tiny, PUBLISHED[name]), OWN), Counts()
    example = conversation(long_talk(8))
    whole = Renderer(made, 100_000, "drop", Counts()).examples([example])[0]
    trees = Renderer(made, max_length, "truncate", counts).examples([example])
    fits = [n for n in range(1, 9) if _longest(made, n) <= max_length]
    if not fits:
        assert trees == [] and counts.by_reason == {"too long": 1}
        return
    kept = fits[-1]
    (tree,) = trees
    assert counts.by_reason == ({"last turns cut": 1} if kept < 8 else {})
    assert max(len(path.ids) for path in tree) <= max_length
    assert all(path.scored[-1] and path.ids[-1] == made.end_ids[-1] for path in tree)
    (same,) = Renderer(made, 100_000, "drop", Counts()).examples([conversation(long_talk(kept))])
    assert tree == same
    assert {tuple(p.ids[: i + 1]) for p in tree for i in learnt(p)} <= {
        tuple(p.ids[: i + 1]) for p in whole for i in learnt(p)
    }


def _longest(made: Formatter, n: int) -> int:
    """Tokens of the longest path of the first ``n`` exchanges."""
    turns = [Turn(role, content) for role, content in long_talk(n)]
    return max(
        len(made.prompt_ids(turns[:place])) + len(made.answer_ids(turns[:place], turns[place].content))
        for place in range(1, len(turns), 2)
    )


def test_a_conversation_whose_first_exchange_is_too_long_keeps_nothing_of_it(tiny: Path) -> None:
    made, counts = formatter_of(tiny, CHATML), Counts()
    talk = [("user", "word " * 90), ("assistant", "One."), *long_talk(1)]
    assert Renderer(made, 60, "truncate", counts).examples([conversation(talk)]) == []
    assert Renderer(made, 60, "drop", counts).examples([conversation(talk)]) == []
    assert counts.by_reason == {"too long": 2}


def test_where_the_last_answer_is_learnt_the_oldest_turns_go(tiny: Path) -> None:
    made, counts = formatter_of(tiny, CHATML), Counts()
    ((path,),) = Renderer(made, 60, "truncate", counts, "last").examples([conversation(long_talk(8))])
    assert counts.by_reason == {"oldest turns cut": 1}
    assert made.tokenizer.decode([path.ids[i] for i in learnt(path)]) == "It is 7, then 8.</s>"


def test_an_empty_answer_within_a_conversation_is_not_learnt_and_counted(tiny: Path) -> None:
    made, counts = formatter_of(tiny, CHATML), Counts()
    talk = [("user", "Say 1."), ("assistant", " "), ("user", "Say 2."), ("assistant", "Two.")]
    ((path,),) = Renderer(made, 500, "drop", counts).examples([conversation(talk, notes=("mended",))])
    assert made.tokenizer.decode([path.ids[i] for i in learnt(path)]) == "Two.</s>"
    assert counts.by_reason == {"mended": 1, "empty answer of a conversation not learnt": 1}


# ------------------------------------------------------------------- gradients and costs


@pytest.mark.parametrize("template", [CHATML, FORGETS])
def test_gradients_of_a_tree_of_many_turns_are_those_of_plain_passes(template: str, tiny: Path) -> None:
    made = formatter_of(tiny, template)
    talk = [
        (role, f"<think>{place} so</think>{content}" if role == "assistant" else content)
        for place, (role, content) in enumerate(long_talk(5))
    ]
    trees = Renderer(made, 1000, "drop", Counts()).examples([conversation(talk), conversation(talk[:4])])
    assert len(trees[0]) == (1 if template == CHATML else 5)
    apart = [  # each learnt answer a pass of its own, as inference reads it
        (TokenPath(path.ids[: end + 1], [place in span for place in range(end + 1)]),)
        for tree in trees
        for path in tree
        for span, end in _spans(path)
    ]
    model = AutoModelForCausalLM.from_pretrained(str(tiny), dtype=torch.float32).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".self_attn.q_proj" in name or ".self_attn.v_proj" in name)
    scores, gradients = measured(Scorer(model), trees)
    plain = Scorer(model, plain=True)
    totals = [torch.cat([path for tree in plain.score([tree]) for path in tree]) for tree in apart]
    assert torch.allclose(torch.cat([s.detach() for s in totals]), torch.cat(scores), atol=1e-4)
    weights = iter(
        torch.cat([torch.linspace(0.5, 1.5, len(path)) * (1 + k % 3) for k, path in enumerate(scores)]).split(
            [len(total) for total in totals]
        )
    )
    summed = sum((total * weight).sum() for total, weight in zip(totals, weights, strict=True))
    parameters = [p for p in model.parameters() if p.requires_grad]
    for ours, theirs in zip(gradients, torch.autograd.grad(summed, parameters), strict=True):  # type: ignore[arg-type]
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def _spans(path: TokenPath) -> list[tuple[range, int]]:
    """Each run of learnt places, with its last place."""
    places = learnt(path)
    begins = [place for place in places if place - 1 not in places]
    ends = [place for place in places if place + 1 not in places]
    return [(range(begin, end + 1), end) for begin, end in zip(begins, ends, strict=True)]


@pytest.mark.parametrize("template", [CHATML, FORGETS])
def test_ten_turns_cost_what_their_distinct_tokens_cost(template: str, tiny: Path) -> None:
    made = formatter_of(tiny, template)
    talk = [
        (role, f"<think>{place} so</think>{content}" if role == "assistant" else content)
        for place, (role, content) in enumerate(long_talk(10))
    ]
    (tree,) = Renderer(made, 10_000, "drop", Counts()).examples([conversation(talk)])
    forwarded = len(lay_out([tree], torch.device("cpu")).ids)
    # a token is what it is and all that stands before it; the last of a path predicts nothing
    distinct = {tuple(path.ids[: end + 1]) for path in tree for end in range(len(path.ids) - 1)}
    assert forwarded == len(distinct)
    apart = sum(end for path in tree for _, end in _spans(path))
    assert forwarded < apart / (5 if template == CHATML else 2.5)


# ------------------------------------------------------------------------ packed trees

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=6)


@given(st.lists(st.tuples(st.integers(0, 9), st.lists(IDS, max_size=5)), max_size=4))
def test_packed_trees_are_what_was_packed(paths: list[tuple[int, list[list[int]]]]) -> None:
    tree: Encoded = tuple(EncodedPath(kept, tuple(runs)) for kept, runs in paths)
    assert unpack(pack(tree)) == tree


SMALL = st.lists(st.integers(0, 2), min_size=1, max_size=5)


@given(SMALL, st.lists(st.tuples(st.booleans(), SMALL, SMALL), min_size=1, max_size=4))
def test_every_answer_of_a_tree_stands_after_its_own_prompt(
    first: list[int], steps: list[tuple[bool, list[int], list[int]]]
) -> None:
    turns: list[tuple[list[int], list[int]]] = []
    for goes_on, asked, answer in steps:
        before = [*turns[-1][0], *turns[-1][1]] if turns and goes_on else first
        # Two answers without a token between them are one stretch of what is learnt.
        assume(all([*prompt, *said] != [*before, *asked] for prompt, said in turns))
        turns.append(([*before, *asked], answer))
    paths = tree_of(of_turns(turns))
    spans = [(path.ids[: span[0]], path.ids[span[0] : end + 1]) for path in paths for span, end in _spans(path)]
    assert [(list(prompt), list(answer)) for prompt, answer in spans] == turns
    assert len(paths) <= 1 + sum(not goes_on for goes_on, _, _ in steps[1:])


def test_a_store_holds_trees_of_any_number_of_paths(tmp_path: Path) -> None:
    encoded = [
        of_turns([([1, 2], [3]), ([1, 2, 3, 4], [5, 6])]),
        of_answers([7], [[8, 9], [10]]),
        of_turns([([1, 2], [3]), ([1, 9], [5]), ([1, 9, 5, 4], [6])]),
    ]
    assert [path.kept for path in encoded[2]] == [0, 1], "what two paths share is held twice"
    store = TreeStore(tmp_path)
    for one in encoded:
        store.append(pack(one))
    expected: list[Tree] = [
        (TokenPath((1, 2, 3, 4, 5, 6), (False, False, True, False, True, True)),),
        (TokenPath((7, 8, 9), (False, True, True)), TokenPath((7, 10), (False, True))),
        (
            TokenPath((1, 2, 3), (False, False, True)),
            TokenPath((1, 9, 5, 4, 6), (False, False, True, False, True)),
        ),
    ]
    assert list(store) == expected and all(a != b for a, b in pairwise(expected))
