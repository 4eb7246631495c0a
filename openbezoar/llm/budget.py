"""Budgets: stop asking when a step or a run has spent what it may.

Reads the account in the call cache, so that what earlier tries of the same run spent counts
and what the cache answers does not. A call's cost is known only when it is answered; so
before it is sent its worst case is reserved, and if that does not fit beside the calls
under way it waits for them. A call that is alone goes while anything is left: a budget of
N is overdrawn by less than one call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openbezoar.errors import BudgetError, RecipeError
from openbezoar.llm import Call
from openbezoar.llm.calls import CallStore, Spender, Spent
from openbezoar.llm.replies import asked_tokens, prompt_tokens
from openbezoar.llm.side_by_side import CalledOff
from openbezoar.recipe.blocks import Budget, Price, ServerModel

if TYPE_CHECKING:
    from openbezoar.context import StepContext


@dataclass(frozen=True)
class _Limit:
    """One budget block: where it stands in the recipe, and which steps' spending it limits (None: all)."""

    where: str
    budget: Budget
    step: str | None


class SpendingLimits:
    """What one model may still be asked in one step."""

    def __init__(self, store: CallStore, spender: Spender, limits: Sequence[_Limit], prices: dict[str, Price]) -> None:
        self.store, self.spender, self.limits, self.prices = store, spender, limits, prices
        self._held: list[Spent] = []
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, calls: Sequence[Call], off: threading.Event | None = None) -> Iterator[None]:
        """Hold the worst case of calls while they are asked. Waits for room; raises BudgetError if nothing is left."""
        if not self.limits:
            yield
            return
        worst = worst_case(calls)
        with self._changed:
            while True:
                if off is not None and off.is_set():
                    raise CalledOff
                fits = [self._fits(limit, worst) for limit in self.limits]
                if all(fits) or not self._held:
                    break
                self._changed.wait(0.2)
            self._held.append(worst)
        try:
            yield
        finally:
            with self._changed:
                self._held.remove(worst)
                self._changed.notify_all()

    def _fits(self, limit: _Limit, worst: Spent) -> bool:
        """Whether a call's worst case fits beside what is spent and under way. Raises BudgetError if all is spent."""
        accounts = [
            (model, s)
            for (run, step, model), s in self.store.accounts().items()
            if run == self.spender.run and limit.step in (None, step)
        ]
        tokens = sum(s.prompt_tokens + s.tokens for _, s in accounts)
        money = sum(self._money(model, s) for model, s in accounts)
        budget = limit.budget
        if (budget.tokens is not None and tokens >= budget.tokens) or (
            budget.money is not None and money >= budget.money
        ):
            raise BudgetError(self._used_up(limit, [s for _, s in accounts], money))
        under_way = [*self._held, worst]
        tokens += sum(s.prompt_tokens + s.tokens for s in under_way)
        money += sum(self._money(self.spender.model, s) for s in under_way)
        return (budget.tokens is None or tokens <= budget.tokens) and (budget.money is None or money <= budget.money)

    def _money(self, model: str, spent: Spent) -> float:
        return self.prices.get(model, Price()).of(spent.prompt_tokens, spent.tokens)

    def _used_up(self, limit: _Limit, accounts: Sequence[Spent], money: float) -> str:
        prompt_tokens, tokens = sum(s.prompt_tokens for s in accounts), sum(s.tokens for s in accounts)
        limits = [f"{limit.budget.tokens:,} tokens"] if limit.budget.tokens is not None else []
        limits += [f"money {limit.budget.money:g}"] if limit.budget.money is not None else []
        lost = sum(s.unanswered for s in accounts)
        return (
            f"the budget of {' or '.join(limits)} is used up: {sum(s.calls for s in accounts):,}"
            f" answers{f' and {lost:,} calls without one' * bool(lost)}, {prompt_tokens + tokens:,} tokens"
            f" ({prompt_tokens:,} in, {tokens:,} out), money {money:.4g}; every answer is kept: raise {limit.where}"
            " and run again to go on from here"
        )


def worst_case(calls: Sequence[Call]) -> Spent:
    """Most tokens that calls may take."""
    return Spent(len(calls), sum(map(prompt_tokens, calls)), sum(map(asked_tokens, calls)))


def spending_limits(context: StepContext, model: str, store: CallStore) -> SpendingLimits:
    """The spending of a model in a step: the step's own budget and the recipe's."""
    step = context.recipe.steps.get(context.name)
    own: Budget | None = getattr(step, "budget", None)
    limits = [_Limit(f"steps.{context.name}.budget", own, context.name)] if own else []
    limits += [_Limit("budget", context.recipe.budget, None)] if context.recipe.budget else []
    spec = context.recipe.models.get(model)
    if (
        isinstance(spec, ServerModel)
        and not (spec.price.input or spec.price.output)
        and any(limit.budget.money is not None for limit in limits)
    ):
        raise RecipeError(
            f"models.{model}: no price, but a budget in money; add price: {{input: X, output: Y}} per million tokens,"
            " or limit tokens"
        )
    prices = {name: spec.price for name, spec in context.recipe.models.items() if isinstance(spec, ServerModel)}
    return SpendingLimits(store, Spender(context.run.name, context.name, model), limits, prices)
