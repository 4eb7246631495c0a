"""What a recipe will cost and what will go wrong with it, said before any work.

The package can be called: ``openbezoar.plan(recipe)`` is the library's function of that name
(``plan/listed.py``), and a submodule's name on its package is the package itself.
"""

import inspect
import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """This package, which can be called."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        from openbezoar.plan.listed import plan

        return plan(*arguments, **settings)

    @property
    def __signature__(self) -> inspect.Signature:
        from openbezoar.plan.listed import plan

        return inspect.signature(plan)


sys.modules[__name__].__class__ = _Callable
