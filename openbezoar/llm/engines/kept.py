"""How long engines stay. One that is given back is kept while the run's next step may use it, and stopped
before another one starts, before weights are loaded into this process, and before a step that does not use it.

Outside of a run of steps (``keeping``) it is stopped when it is given back.
"""

from __future__ import annotations

import atexit
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from openbezoar.llm.engines.process import clear_leftovers
from openbezoar.llm.engines.servers import EngineServer

FOLDER = ".engines"
"""Of a run: the engines' logs, and the models that were written for them."""
MODELS = "models"


@dataclass
class Lent:
    """The servers of one model. users: who have them now."""

    name: str
    servers: list[EngineServer]
    users: int = 0
    checked: bool = False  # held against the tokenizer

    def open(self, off: threading.Event | None = None) -> None:
        """All of them started, side by side. off: told by others that none is wanted any more."""
        off = off or threading.Event()
        with ThreadPoolExecutor(len(self.servers)) as threads:
            try:
                list(threads.map(lambda server: server.open(off), self.servers))
            except BaseException:
                off.set()  # a thread that has not begun yet would start one after all are closed
                self.close()
                raise

    def close(self) -> None:
        """All of them stopped, side by side."""
        with ThreadPoolExecutor(len(self.servers)) as threads:
            list(threads.map(lambda server: server.close(), self.servers))


@dataclass
class KeptEngines:
    """The engines of this process."""

    lent: dict[str, Lent] = field(default_factory=dict)
    counting: threading.Lock = field(default_factory=threading.Lock)
    runs: int = 0  # under way in this process; threads may have one each

    def lend(self, key: str, make: Callable[[], Lent]) -> Lent:
        """The servers of a model, started; those that nobody has are stopped first where they are another's."""
        if key not in self.lent:
            self.make_room()
            made = make()
            self.lent[key] = made
        lent = self.lent[key]
        lent.users += 1
        try:
            lent.open()
        except BaseException:
            self.lent.pop(key, None)
            raise
        return lent

    def give_back(self, key: str) -> None:
        """One user less; without a run that may want them again, the last one's going stops them."""
        if (lent := self.lent.get(key)) is not None:
            lent.users -= 1
            if not self.runs:
                self.make_room()

    def make_room(self, but: Collection[str] = ()) -> None:
        """Stop the engines that nobody has, but those of these models."""
        for key, lent in list(self.lent.items()):
            if lent.users <= 0 and lent.name not in but:
                del self.lent[key]
                lent.close()

    def stop_all(self) -> None:
        """Whoever has them."""
        for lent in self.lent.values():
            lent.users = 0
        self.make_room()

    @contextmanager
    def keeping(self, run: Path) -> Iterator[None]:
        """While a run's steps follow one another; afterwards nothing is left, nor of an earlier try before."""
        clear_leftovers(run / FOLDER)
        with self.counting:
            self.runs += 1
        try:
            yield
        finally:
            with self.counting:
                self.runs -= 1
            if self.runs:  # another run's engines stay its own
                self.make_room()
            else:
                self.stop_all()
            shutil.rmtree(run / FOLDER / MODELS, ignore_errors=True)


ENGINES = KeptEngines()
atexit.register(ENGINES.stop_all)
