"""A checkpoint behind the call cache whose texts an engine writes, and whose probabilities are the forest's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from openbezoar.llm.cached import CachedLLM
from openbezoar.llm.engines.kept import FOLDER
from openbezoar.llm.engines.programs import chosen
from openbezoar.machine.devices import this_device
from openbezoar.models.references import Checkpoint
from openbezoar.models.shapes import model_of
from openbezoar.recipe.blocks import LocalModel, RewardModel
from openbezoar.rows.records import Turn

if TYPE_CHECKING:
    from openbezoar.context import StepContext


def engine_of(recipe: Any, name: str, on_gpu: bool | None = None) -> tuple[str, LocalModel] | None:
    """(the engine that answers for a model or a step's model, the recipe's entry at the bottom); None for the forest,
    and for a server.
    """
    spec = model_of(recipe, name)
    if not isinstance(spec, LocalModel) or isinstance(spec, RewardModel):
        return None
    engine = chosen(spec.engine, this_device().kind == "cuda" if on_gpu is None else on_gpu)
    return None if engine == "forest" else (engine, spec)


def by_engine(name: str, context: StepContext, checkpoint: Checkpoint, forest: CachedLLM) -> EngineLLM | None:
    """The model as its engine answers for it, with ``forest`` for its probabilities; None if it has no engine."""
    if (chosen_ := engine_of(context.recipe, name)) is None:
        return None
    engine, spec = chosen_

    def opener() -> Any:
        from openbezoar.llm.engines.kept import ENGINES
        from openbezoar.llm.engines.managed import ManagedLLM
        from openbezoar.models.load import before_loading

        if ENGINES.make_room not in before_loading:
            before_loading.append(ENGINES.make_room)
        return ManagedLLM(
            checkpoint,
            spec,
            engine,
            formatter=forest.formatter,
            folder=context.run.path / FOLDER,
            say=context.progress.say,
            count=context.counts.add,
        )

    identity = {**checkpoint.identity(), "engine": engine, **({"args": spec.args} if spec.args else {})}
    return EngineLLM(name, identity, opener, forest)


class EngineLLM(CachedLLM):
    """Never asks twice, as all that is cached; each call of its own is kept, the moment it comes."""

    def __init__(self, name: str, identity: Any, opener: Callable[[], Any], forest: CachedLLM) -> None:
        super().__init__(
            name,
            identity,
            opener,
            forest.store,
            forest.spending,
            "call",
            lambda: forest.formatter,
            forest.tally,
            forest.spoken,
            billed=False,
        )
        self._forest = forest

    def choice_logprobs(
        self, conversations: Sequence[Sequence[Turn]], prefix: str, choices: Sequence[str]
    ) -> list[list[float]]:
        """As the model's own, which the forest tells exactly; the engine is let go of first."""
        if self._llm is not None:
            self._llm.close()
            self._llm = None
        return self._forest.choice_logprobs(conversations, prefix, choices)

    def close(self) -> None:
        """Give back what both hold, and the cache's file."""
        try:
            super().close()
        finally:
            self._forest.close()
