"""The forest against plain passes of each sequence by itself, the oracle: values, gradients, families of models."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from openbezoar.errors import ModelError
from openbezoar.forest import Scorer, TokenPath, Tree, flex
from openbezoar.forest.attention import TOGETHER, _calls, _segments
from openbezoar.forest.layout import lay_out

KERNEL: Any = flex._kernel
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 512,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2, "head_dim": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**GROUPED, "tie_word_embeddings": False},
    "qwen2": {**GROUPED, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": GROUPED,
    "gemma2": {
        **GROUPED,
        "sliding_window": 6,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {**GROUPED, "sliding_window": 6, "query_pre_attn_scalar": 8},
}


@cache
def model_of(family: str, device: str = "cpu") -> nn.Module:
    """A random model in fp32; two of its matrices collect gradients, as an adapter's would."""
    torch.manual_seed(0)
    model = (
        AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family]), dtype=torch.float32)
        .eval()
        .requires_grad_(False)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)  # initial weights are so small that attention hardly matters
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.requires_grad_(True)
        layer.self_attn.k_proj.weight.requires_grad_(True)
        layer.self_attn.v_proj.weight.requires_grad_(True)
    return model.to(device)


def measured(scorer: Scorer, trees: list[Tree]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Scores path by path, and the gradients of their weighted sum."""
    scores = [path for tree in scorer.score(trees) for path in tree]
    total = sum(
        (path * torch.linspace(0.5, 1.5, len(path), device=path.device)).sum() * (1 + k % 3)
        for k, path in enumerate(scores)
    )
    parameters = [p for p in scorer.model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total, parameters)  # type: ignore[arg-type]
    return [s.detach() for s in scores], list(gradients)


def agree(family: str, trees: list[Tree], device: str = "cpu") -> None:
    """Forest and plain passes: log-probabilities to 1e-4 absolute, gradients to 1e-4 of the greatest."""
    model = model_of(family, device)
    forest = Scorer(model)
    forest.checked = True  # the self-check is what is tested here
    ours, our_gradients = measured(forest, trees)
    # The plain oracle runs each path alone, so padding cannot help it.
    plain, sums = Scorer(model, plain=True), [torch.zeros_like(g) for g in our_gradients]
    place = 0
    for tree in trees:
        for path in tree:
            (score,) = plain.forward([path])
            assert torch.allclose(ours[place], score.detach(), atol=1e-4), family
            weighted = (score * torch.linspace(0.5, 1.5, len(score), device=score.device)).sum() * (1 + place % 3)
            for total, gradient in zip(
                sums, torch.autograd.grad(weighted, [p for p in model.parameters() if p.requires_grad]), strict=True
            ):
                total += gradient
            place += 1
    greatest = max(float(total.abs().max()) for total in sums)
    for ours_, theirs in zip(our_gradients, sums, strict=True):
        assert torch.allclose(ours_, theirs, rtol=1e-3, atol=1e-4 * greatest), family


def tree_of(shape: list[Any], generator: torch.Generator, prefix: tuple[int, ...], depth: int = 0) -> list[TokenPath]:
    """Paths of nested lists of lengths: [length, child, child, …]."""
    ids = (*prefix, *torch.randint(3, 97, (shape[0],), generator=generator).tolist())
    if len(shape) == 1:
        scored = [i > 0 and bool(torch.rand((), generator=generator) < 0.6) for i in range(len(ids))]
        scored[-1] = True
        return [TokenPath(ids, scored)]
    return [path for child in shape[1:] for path in tree_of(child, generator, ids, depth + 1)]


LEAF = st.integers(1, 9).map(lambda n: [n])
SHAPES = st.recursive(
    LEAF,
    lambda child: st.tuples(st.integers(2, 12), st.lists(child, min_size=1, max_size=3)).map(lambda x: [x[0], *x[1]]),
    max_leaves=6,
)


@pytest.mark.parametrize("family", FAMILIES)
@hypothesis_settings(max_examples=12, deadline=None)
@given(
    shapes=st.lists(SHAPES.map(lambda s: s if len(s) > 1 else [s[0] + 1]), min_size=1, max_size=4),
    seed=st.integers(0, 9),
)
def test_random_trees_score_and_learn_like_their_paths_one_by_one(family: str, shapes: list[Any], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    agree(family, [tuple(tree_of(shape, generator, ())) for shape in shapes])


def causal(family: str) -> nn.Module:
    """A small random model of a family whose trunk is not called ``model``, or whose sizes have other names."""
    sizes = {
        "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 512},
        "opt": {**SHAPE, "ffn_dim": 64, "word_embed_proj_dim": 48},
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        **{"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **sizes.get(family, SHAPE)},
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "opt", "phi"])
def test_families_that_call_their_trunk_otherwise_are_scored_alike(family: str) -> None:
    model = causal(family)
    trees = [
        tuple(TokenPath.of((5, 6, 7, 8), end) for end in ((9, 10), (11, 12, 13), (9, 14))),
        (TokenPath.of((5, 6, 9), (20, 21)),),
    ]
    shared, apart = Scorer(model), Scorer(model, plain=True)
    assert not shared.plain
    for one, other in zip(shared.logprobs(trees), apart.logprobs(trees), strict=True):
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(one, other, strict=True))


def test_a_family_whose_attention_ignores_the_layout_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match="FalconModel: scoring with shared prefixes differs"):
        Scorer(causal("falcon")).logprobs([(TokenPath.of((5, 6, 7), (8, 9)), TokenPath.of((5, 6, 7), (10, 11)))])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_of_depth_four_longer_than_the_window_agrees(family: str) -> None:
    shape = [14, [9, [11, [7], [3]], [5]], [20], [2, [2, [30], [1]], [1]]]
    agree(
        family,
        [tuple(tree_of(shape, torch.Generator().manual_seed(4), ())), (TokenPath.of(range(3, 40), range(40, 60)),)],
    )


def test_branches_may_be_empty_equal_or_begin_one_another() -> None:
    head = (5, 6, 7, 8)
    agree(
        "llama",
        [
            (
                TokenPath.of(head, (9,)),
                TokenPath.of(head, (9, 10)),
                TokenPath.of(head, (9, 10)),
                TokenPath(head, (False, False, False, True)),
                TokenPath.of(head[:2], (7,)),
            )
        ],
    )


def test_short_siblings_go_side_by_side_and_long_ones_alone() -> None:
    head = tuple(range(3, 23))
    short: Tree = tuple(TokenPath.of(head, (k, k + 1, k + 2)) for k in range(30, 60, 3))
    calls = _calls(lay_out([short], torch.device("cpu")))
    assert [call.sizes for call in calls] == [(20,), (2,) * 10]
    long: Tree = tuple(TokenPath.of(head, [k] * TOGETHER) for k in (30, 31))
    assert [call.sizes for call in _calls(lay_out([long], torch.device("cpu")))] == [
        (20,),
        (TOGETHER - 1,),
        (TOGETHER - 1,),
    ]
    agree("gemma3_text", [short])


@pytest.mark.parametrize(
    ("family", "settings", "name"), [("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1}, "s_aux")]
)
def test_an_unknown_feature_of_attention_is_refused_by_name(family: str, settings: dict[str, Any], name: str) -> None:
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **{**GROUPED, **settings}), dtype=torch.float32
    ).requires_grad_(False)
    with pytest.raises(ModelError, match=name):
        Scorer(model).score([(TokenPath.of(range(3, 9), range(9, 12)),)])


HEADS: dict[str, dict[str, Any]] = {
    "granite": {
        **GROUPED,
        "logits_scaling": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 2.0,
    },
    "cohere": {**GROUPED, "logit_scale": 0.25, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
    "phi": {**SHAPE, "num_key_value_heads": 6, "partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize("family", HEADS)
def test_the_head_s_bias_and_scale_are_the_model_s_own(family: str) -> None:
    torch.manual_seed(0)
    model: Any = (
        AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **HEADS[family]), dtype=torch.float32)
        .eval()
        .requires_grad_(False)
    )
    if family == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    probe = model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    with torch.no_grad():
        probe.mul_(20)
    head, scorer = (5, 6, 7, 8, 9), Scorer(model)
    tree = (TokenPath.of(head, (20, 21, 22)), TokenPath.of(head, (30,)))
    ((ours, _),) = scorer.score([tree])
    ids = torch.tensor([tree[0].ids])
    logits = model(ids).logits[0].float()
    theirs = logits.log_softmax(-1)[4:7].gather(-1, ids[0, 5:, None])[:, 0]
    assert torch.allclose(ours, theirs, atol=1e-4)
    gradients = [torch.autograd.grad(scores.sum(), probe)[0] for scores in (ours, theirs)]
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-4 * gradients[1].abs().max()
    hidden = model.model(ids, use_cache=False).last_hidden_state[0]
    assert torch.allclose(scorer.logits(hidden), logits, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_segments_through_autograd_as_on_gpus_agree_too(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setattr("openbezoar.forest.attention._has_cpu_kernel", lambda device: False)
    kernel, calls = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        "openbezoar.forest.attention.scaled_dot_product_attention", lambda *a, **k: calls.append(a) or kernel(*a, **k)
    )
    shape = [14, [9, [11, [7], [3]], [5]], [20], [2, [2, [30], [1]], [1]]]
    agree(
        family,
        [tuple(tree_of(shape, torch.Generator().manual_seed(4), ())), (TokenPath.of(range(3, 40), range(40, 60)),)],
    )
    assert calls


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention on a CPU: its plain arithmetic on the same masks and scores. torch refuses
    gradients there, which the arithmetic has.
    """
    from torch.nn.attention import flex_attention as module

    if not hasattr(module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"):
        pytest.skip("this torch runs FlexAttention compiled only")
    monkeypatch.setattr(module, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex, "_kernel", lambda: module.flex_attention)


@pytest.mark.parametrize(
    ("window", "cap", "scaling", "kv_heads"),
    [(None, None, None, 2), (4, None, 0.5, 2), (None, 1.5, None, 6), (7, 0.8, 0.3, 3)],
)
@hypothesis_settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(SHAPES.map(lambda s: s if len(s) > 1 else [s[0] + 1]), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
def test_flex_attention_s_masks_and_scores_say_what_the_segments_do(
    uncompiled: None,
    window: int | None,
    cap: float | None,
    scaling: float | None,
    kv_heads: int,
    shapes: list[Any],
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layout = lay_out([tuple(tree_of(shape, generator, ())) for shape in shapes], torch.device("cpu"))
    n = len(layout.ids)
    inputs = [
        torch.randn(1, heads, n, 16, generator=generator, requires_grad=True) for heads in (6, kv_heads, kv_heads)
    ]
    upstream = torch.randn(1, 6, n, 16, generator=generator)
    found = []
    for way in (flex.attend, _segments):
        out = way(layout, *inputs, scaling, window, cap)
        found.append([out.detach(), *torch.autograd.grad(out, inputs, upstream)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5 * float(1 + theirs.abs().max()))


FULL_AND_WINDOWS: list[Any] = [(None, None), (50, None), (20, None)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds_of_layers",
    [FULL_AND_WINDOWS[1:], pytest.param([*FULL_AND_WINDOWS, (None, 2.0), (40, 2.0)], marks=pytest.mark.slow)],
    ids=["windows", "all"],
)
def test_flex_attention_is_compiled_once_for_all_lengths_and_windows(
    uncompiled: None, monkeypatch: pytest.MonkeyPatch, kinds_of_layers: list[Any]
) -> None:
    from torch._dynamo.utils import counters

    # all but the kernel itself, which a CPU has for inference only
    compiled = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(flex, "_kernel", cache(KERNEL.__wrapped__))
    monkeypatch.setattr(torch, "compile", compiled)
    torch._dynamo.reset()
    kinds = []
    for window, cap in kinds_of_layers:
        counters.clear()
        for n in (100, 200, 333):
            layout = lay_out(
                [
                    (
                        TokenPath.of(range(n // 3), range(n)),
                        TokenPath.of(range(n // 3), range(5, n // 2)),
                        TokenPath.of((3,), range(9)),
                    )
                ],
                torch.device("cpu"),
            )
            inputs = [torch.randn(1, heads, len(layout.ids), 16, requires_grad=True) for heads in (6, 2, 2)]
            out, wanted = (way(layout, *inputs, None, window, cap) for way in (flex.attend, _segments))
            assert torch.allclose(out, wanted, atol=1e-5)
            gradients = [torch.autograd.grad(x.square().sum(), inputs) for x in (out, wanted)]
            assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*gradients, strict=True))
        kinds.append(counters["stats"]["unique_graphs"])
    another_window = kinds.pop(kinds_of_layers.index((20, None)))
    assert max(kinds) <= 2  # torch may take a first length for a fixed one
    assert another_window == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_over_flex_attention_scores_and_learns_like_plain_passes(
    uncompiled: None, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    calls = []
    monkeypatch.setattr(flex, "usable", lambda *kind: calls.append(kind) is None)
    monkeypatch.setattr(flex, "BLOCK", 16)
    shape = [14, [9, [11, [7], [3]], [5]], [20], [2, [2, [30], [1]], [1]]]
    agree(
        family,
        [tuple(tree_of(shape, torch.Generator().manual_seed(4), ())), (TokenPath.of(range(3, 40), range(40, 60)),)],
    )
    assert calls


def test_the_probe_of_flex_attention_passes_what_agrees_and_names_what_does_not(
    uncompiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key = torch.empty(1, 4, 1, 16), torch.empty(1, 2, 1, 16)
    before = torch.get_rng_state()
    assert flex._fault(query, key, 100, 2.0, _segments) == ""
    assert flex._fault(query.half(), key.half(), None, None, _segments) == ""
    assert torch.equal(torch.get_rng_state(), before)
    # everything before is seen
    whole = flex.rule
    monkeypatch.setattr(
        flex, "rule", lambda layout, w: whole(replace(layout, last=torch.full_like(layout.ids, len(layout.ids))), w)
    )
    assert "results differ" in flex._fault(query, key, None, None, _segments)
    monkeypatch.setattr(flex, "_kernel", lambda: 1 / 0)
    assert "ZeroDivisionError" in flex._fault(query, key, None, None, _segments)


def test_flex_attention_is_asked_once_for_each_kind_and_never_of_a_device_that_is_too_old(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class OnGpu:
        """As much of a tensor as is looked at."""

        device, dtype = torch.device("cuda", 0), torch.bfloat16

        def __init__(self, heads: int) -> None:
            self.shape = (1, heads, 200, 64)

    asked: list[Any] = []
    query: Any = OnGpu(9)
    key: Any = OnGpu(3)
    monkeypatch.setattr(flex, "_usable", {})
    monkeypatch.setattr(flex, "_reported", set())
    monkeypatch.setattr(flex, "_fault", lambda *kind: asked.append(kind) or "no kernel")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not flex.usable(query, key, None, None, _segments) and not asked
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert [flex.usable(query, key, window, None, _segments) for window in (None, None, 16, 32)] == [False] * 4
    assert len(asked) == 2
    assert capsys.readouterr().err.count("(no kernel)") == 1  # two kinds that fail alike
    assert (
        not flex.usable(torch.empty(1, 9, 200, 64), torch.empty(1, 3, 200, 64), None, None, _segments)
        and len(asked) == 2
    )


@pytest.fixture
def on_a_gpu(uncompiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention passes for usable until it fails; nothing of other tests is remembered."""
    monkeypatch.setattr(flex, "_usable", {})
    monkeypatch.setattr(flex, "_reported", set())
    monkeypatch.setattr(flex, "_able", lambda device: True)
    monkeypatch.setattr(flex, "_fault", lambda *kind: "")
    monkeypatch.setattr(flex, "BLOCK", 16)


LONG: list[Tree] = [
    (TokenPath.of(range(3, 40), range(40, 60)), TokenPath.of(range(3, 40), range(20, 50))),
    (TokenPath.of(range(5, 30), range(9)),),
]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("calls", [0, 1])
def test_a_kernel_that_fails_after_its_probe_is_left_to_the_segments_with_one_line(
    on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], family: str, calls: int
) -> None:
    plain, tried = flex._kernel(), []

    def kernel(*args: Any, **kwargs: Any) -> Any:
        tried.append(args)
        if len(tried) > calls:
            raise RuntimeError("Recompilation limit\nreached")
        return plain(*args, **kwargs)

    monkeypatch.setattr(flex, "_kernel", lambda: kernel)
    agree(family, LONG)
    once = len(tried)
    assert calls < once <= calls + 2  # both kinds of Gemma's layers
    assert (
        capsys.readouterr().err
        == "  attention by segments: FlexAttention does not work here (RuntimeError: Recompilation limit reached)\n"
    )
    agree(family, LONG)
    assert len(tried) == once and not any(flex._usable.values())


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_kernel_that_fails_halfway_through_leaves_recomputed_layers_their_way(
    on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    model: Any = model_of("llama")
    wanted = measured(Scorer(model, plain=True), LONG)
    scorer = Scorer(model)
    scorer.checked = True
    plain, tried = flex._kernel(), []

    def kernel(*args: Any, **kwargs: Any) -> Any:
        tried.append(args)
        if len(tried) == calls + 1:
            raise RuntimeError("no kernel")
        return plain(*args, **kwargs)

    monkeypatch.setattr(flex, "_kernel", lambda: kernel)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    try:
        if calls == 2:  # in the second run of a layer, whose first has said what it saves
            with pytest.raises(RuntimeError, match="no kernel"):
                measured(scorer, LONG)
            return
        found = measured(scorer, LONG)
    finally:
        model.eval().gradient_checkpointing_disable()
    for ours, theirs in zip([*found[0], *found[1]], [*wanted[0], *wanted[1]], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4 * float(1 + theirs.abs().max()))


def test_a_backward_kernel_that_cannot_be_compiled_is_found_in_the_forward_pass(
    on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def refuse(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no backward kernel")

    backend = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward), bw_compiler=refuse)
    monkeypatch.setattr(torch._functorch.config, "force_non_lazy_backward_lowering", False)
    monkeypatch.setattr(flex, "_kernel", cache(KERNEL.__wrapped__))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    agree("llama", LONG)
    assert "no backward kernel" in capsys.readouterr().err


def test_a_row_too_large_for_the_device_is_not_tried_again(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(flex, "_kernel", lambda: kernel)
    with pytest.raises(torch.OutOfMemoryError):
        Scorer(model_of("llama")).score(LONG)


def test_questions_with_the_same_examples_share_a_pass_up_to_its_tokens() -> None:
    """Each question's choices and all questions' examples count once: twenty of 500 tokens are 640
    to compute, not 42,000.
    """
    examples = list(range(20, 500))
    questions = [
        tuple(TokenPath.of([*examples, *[500 + i] * 7], [choice]) for choice in (1, 2, 3, 4)) for i in range(20)
    ]
    scorer = Scorer(model_of("llama"), tokens=1024)
    (one,) = scorer.batches(questions)
    assert sorted(one) == list(range(20))
    assert len(lay_out([questions[i] for i in one], scorer.device).ids) == 480 + 20 * 7
    scorer.tokens = 512
    passes = scorer.batches(questions)
    assert sorted(i for group in passes for i in group) == list(range(20))
    sizes = [len(lay_out([questions[i] for i in group], scorer.device).ids) for group in passes]
    assert max(sizes) <= 512 and len(passes) == 5
