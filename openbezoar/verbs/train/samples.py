"""Greedy answers of the model in training to a few fixed prompts: how what it says changes, seen beside its losses."""

from __future__ import annotations

from typing import Any

from openbezoar.context import StepContext
from openbezoar.forest import Scorer
from openbezoar.llm import Sampling
from openbezoar.llm.local import LocalLLM
from openbezoar.recipe.train_steps import Answering
from openbezoar.reporting.samples import SampledAnswer, SampledAnswers
from openbezoar.rows.records import Turn
from openbezoar.training.fit import Bench
from openbezoar.training.loop import Sampler


def sampler_of(step: Answering, context: StepContext, bench: Bench[Scorer]) -> Sampler | None:
    """Asks the bench's model in its own prompt format; None where the step wants no answers.

    Greedy, so that no random number is drawn, and without gradients; the model is left in the mode it was in.
    """
    if step.sample_every is None:
        return None
    llm = LocalLLM(context.checkpoint(step.model), (bench.model, bench.formatter.tokenizer))
    sampling = Sampling(max_new_tokens=step.sample_tokens, temperature=0.0)
    conversations = [[Turn("user", prompt)] for prompt in step.sample_prompts]

    def ask() -> dict[str, Any]:
        trained = bench.model.training
        bench.model.eval()
        try:
            replies = llm.chat(conversations, sampling, [0] * len(conversations))
        finally:
            bench.model.train(trained)
        said = zip(step.sample_prompts, replies, strict=True)
        answers = [SampledAnswer(prompt=prompt, answer=reply.text, finish=reply.finish) for prompt, reply in said]
        return SampledAnswers(answers=answers).written()

    return Sampler(step.sample_every, ask)
