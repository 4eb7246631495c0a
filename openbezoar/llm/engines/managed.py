"""A checkpoint that an engine answers for: its prompts by the project's own template, as token ids where the
engine takes them; started at the first call, started again when it ends or hangs.

The requests, their retries and refusals are those of any server (``llm/server.py``).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from openbezoar.dialogue import thoughts
from openbezoar.dialogue.tokens import Frame
from openbezoar.errors import ModelError
from openbezoar.llm import Call, Completion, Sampling
from openbezoar.llm.engines.kept import ENGINES, MODELS, Lent
from openbezoar.llm.engines.programs import EngineStart, check_args, found, width_of
from openbezoar.llm.engines.servers import EngineServer, Patience
from openbezoar.llm.engines.weights import readable
from openbezoar.llm.server import ServerLLM
from openbezoar.llm.settings import RawPrompt
from openbezoar.llm.transport import Gone, Late, Reply, Transport
from openbezoar.machine.devices import this_device
from openbezoar.machine.gpus import visible_gpus
from openbezoar.models.references import Checkpoint
from openbezoar.recipe.blocks import LocalModel, ServerModel
from openbezoar.rows.records import Turn
from openbezoar.store.digests import digest

PROBE = (Turn("user", "Name the sea\u2019s colours \u2014 na\u00efve caf\u00e9, 3 + 4 = 7?\n  Then stop."),)
PROBED = 8  # tokens
PATIENCE = Patience()


class ManagedLLM:
    """An engine's answers, one call at a time, as ``ServerLLM`` gives a server's."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: LocalModel,
        engine: str,
        *,
        formatter: Any,
        folder: Path,
        say: Callable[[str], None] = lambda text: None,
        count: Callable[[str], None] = lambda reason: None,
        patience: Patience | None = None,
    ) -> None:
        """formatter: the checkpoint's. folder: for logs and for models that are written for the engine.

        Starts the engine. Raises ModelError where it is not installed, or does not start.
        """
        self.name, self.checkpoint, self.spec, self.formatter = checkpoint.name, checkpoint, spec, formatter
        self.patience, self._say, self._folder = patience or PATIENCE, say, folder
        self.where = f"model '{self.name}'"
        check_args(f"models.{self.name}", spec.args)
        self.program, self._path = found(engine, self.where)
        self._tokenizer = formatter.tokenizer
        self._frame = Frame.of(self._tokenizer)
        self._reading = threading.Lock()  # a formatter remembers its last prompt
        self._settings = _settings_of(checkpoint.folder())
        self.key = digest([checkpoint.identity(), engine, spec.args, str(spec.gpus), str(folder)])
        self._lent = ENGINES.lend(self.key, self._made)
        windows = [server.window for server in self._lent.servers if server.window is not None]
        self.window = min([self._own_window(), *windows])
        self._transport = _Restarting({server.base: server for server in self._lent.servers}, self.patience)
        served = ServerModel(
            server=[server.base for server in self._lent.servers],
            model=self._served_as,
            concurrency=width_of(self.program, spec.args),
            timeout=self.patience.request,
        )
        self._client = ServerLLM(
            self.name, served, say=say, count=count, transport=self._transport, encode=self._encoded, ours=True
        )
        try:
            self._check_itself()
        except BaseException:
            self.close()
            raise

    # ---- as CachedLLM asks

    @property
    def width(self) -> int:
        """Most requests that can be under way."""
        return self._client.width

    @property
    def words(self) -> dict[str, str]:
        """With which one call was last turned down, by the reason."""
        return self._client.words

    def answer(self, call: Call, off: threading.Event) -> Completion:
        """One answer, as a model of this process would give it: thoughts with the mark that the prompt ended in."""
        prompt_tokens = len(self._ids(call))
        if prompt_tokens >= self.window:
            return Completion("", "error", prompt_tokens, 0, refused="too long")
        self._transport.off.event = off
        answer = self._client.answer(call, off)
        if answer.finish == "error":
            return answer
        opened = "" if isinstance(call.prompt, str) else thoughts.opening(self._text(call))
        return replace(answer, text=(opened + answer.text).strip(), prompt_tokens=prompt_tokens)

    def close(self) -> None:
        """Let go of the engine; it stays while the run's next step may use it."""
        self._client.close()
        ENGINES.give_back(self.key)

    # ---- starting

    @property
    def _served_as(self) -> str:
        if self.program.named:
            return self.name
        return str(readable(self.checkpoint, self.program.reads, self.formatter, self._folder / MODELS))

    def _made(self) -> Lent:
        program, spec = self.program, self.spec
        if program.reads != "folder" or self.checkpoint.adapters:
            self._say(f"  {self.where}: written for {program.name}")
        path = readable(self.checkpoint, program.reads, self.formatter, self._folder / MODELS)
        on_gpu = this_device().kind == "cuda"
        given = EngineStart(path, self.checkpoint.dtype, self._own_window(), on_gpu)
        mine = [*program.tuned(given), *spec.args]

        def command(port: int) -> list[str]:
            return [*program.serve(self._path, str(path), self.name, port), *mine]

        servers = []
        for number, gpu in enumerate(self._gpus()):
            environment = {**program.environment(given), "HF_HUB_OFFLINE": "1"}
            if gpu is not None:
                environment["CUDA_VISIBLE_DEVICES"] = gpu
            log = self._folder / f"{self.name}-{number}.log"
            servers.append(EngineServer(self.where, program, command, log, environment, self.patience, self._say))
        return Lent(self.name, servers)

    def _gpus(self) -> list[str | None]:
        """The GPU of each server; None for one that sees what we see."""
        if self.spec.gpus is None:
            return [None]
        here = visible_gpus()
        wanted = len(here) if self.spec.gpus == "all" else self.spec.gpus
        if wanted > len(here) or not here:
            raise ModelError(
                f"models.{self.name}.gpus: {self.spec.gpus}, and this machine has {len(here)}; leave it out, or take"
                " fewer"
            )
        return list(here[:wanted])

    def _own_window(self) -> int:
        text = self._settings.get("text_config", self._settings)
        stated = text.get("max_position_embeddings")
        return int(stated or self._tokenizer.model_max_length)

    # ---- prompts

    def _ids(self, call: Call) -> list[int]:
        with self._reading:
            if isinstance(call.prompt, str):
                return list(self._frame.ids(self._tokenizer, call.prompt))
            return list(self.formatter.prompt_ids(call.prompt))

    def _text(self, call: Call) -> str:
        if isinstance(call.prompt, str):
            return call.prompt
        with self._reading:
            return str(self.formatter.prompt_text(call.prompt))

    def _encoded(self, call: Call) -> RawPrompt:
        """A call as raw completions take it."""
        ids, sampling = self._ids(call), call.sampling
        most = min(sampling.max_new_tokens, max(1, self.window - len(ids)))
        more = dict(self.program.more(self._ends(sampling), sampling.min_new_tokens, most))
        prompt: str | list[int] = ids
        if not self.program.ids:
            prompt, bos = self._text(call), self._tokenizer.bos_token
            if self.program.adds_bos and self._frame.before and bos and prompt.startswith(bos):
                prompt = prompt[len(bos) :]
        # a special token ends an answer by its id, and is in no text
        named = set(self._tokenizer.all_special_tokens) if "stop_token_ids" in more else ()
        stop = tuple(text for text in dict.fromkeys((*sampling.stop, *self.formatter.stop)) if text not in named)
        return RawPrompt(prompt, stop, most, more)

    def _ends(self, sampling: Sampling) -> list[int]:
        """Tokens that end an answer: as ``LocalLLM`` has them."""
        added = self._tokenizer.get_added_vocab() if sampling.stop else {}
        own = self._settings.get("ends", []) if self.checkpoint.prompt.template == "own" else []
        ends = (*self.formatter.stop_ids(), *own, *(added[stop] for stop in sampling.stop if stop in added))
        return list(dict.fromkeys(ends))

    # ---- the check

    def _check_itself(self) -> None:
        """Hold a probe's prompt and first greedy tokens, as the engine counts and reads them, against the tokenizer's
        own; one line if they differ.
        """
        if self._lent.checked:
            return
        self._lent.checked = True
        call = Call("chat", PROBE, Sampling(PROBED))
        ids = self._ids(call)
        if len(ids) >= self.window:
            return
        value = self._client.probe(call, self.program.tells)
        if value is None:
            return
        words = []
        counted = (value.get("usage") or {}).get("prompt_tokens")
        choice = (value.get("choices") or [{}])[0]
        if type(counted) is int and counted != len(ids):
            words.append(f"counts {counted} tokens in a prompt of {len(ids)}")
        read = choice.get("prompt_token_ids", value.get("prompt_token_ids"))
        if isinstance(read, list) and read != ids:
            words.append(f"read other ids, {read[:4]}… in place of {ids[:4]}…")
        written, text = _written(choice), choice.get("text")
        if written is not None and isinstance(text, str):
            own = self._tokenizer.decode(written, skip_special_tokens=True)
            if own.strip() != text.strip() and not own.startswith(text):
                words.append(f"wrote tokens that read '{own[:40]}' here, and '{text[:40]}' there")
        if words:
            self._say(
                f"{self.where}: {self.program.name} {' and '.join(words)}: its tokenizer is not the model's, and its"
                " answers may be worse than they could be"
            )


def _written(choice: Mapping[str, Any]) -> list[int] | None:
    """The ids of a choice's tokens, as vLLM tells them, or llama.cpp beside their likelihoods."""
    if isinstance(ids := choice.get("token_ids"), list):
        return ids
    told = (choice.get("logprobs") or {}).get("content") or []
    return [token["id"] for token in told] if told and all(type(token.get("id")) is int for token in told) else None


def _settings_of(folder: Path) -> dict[str, Any]:
    """A model's config, with the tokens that its generation settings end at as ``ends``."""
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    generation = folder / "generation_config.json"
    stated = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id") if generation.is_file() else None
    ends = stated if isinstance(stated, list) else [] if stated is None else [stated]
    return {**settings, "ends": [end for end in ends if isinstance(end, int)]}


class _Off(threading.local):
    """Whether the work of this thread is called off."""

    event: threading.Event | None = None


class _Restarting:
    """Requests to servers of ours; one that is lost because its server has ended is sent again to the next start."""

    def __init__(self, servers: Mapping[str, EngineServer], patience: Patience) -> None:
        """servers: by the base URLs that they have in requests."""
        self._servers, self.off = servers, _Off()
        self._http = Transport(None, patience.request, 256, direct=True)

    def post(self, url: str, body: bytes, largest: int) -> Reply:
        """As ``Transport.post``. Raises ModelError too, where a server is given up."""
        base, server = next((base, one) for base, one in self._servers.items() if url.startswith(f"{base}/"))
        while True:
            lost: Exception
            with server.asking() as start:
                try:
                    reply = self._http.post(server.base + url.removeprefix(base), body, largest)
                    server.heard()
                    return reply
                except (Gone, Late) as error:
                    lost = error
            if not server.mend(start, self.off.event, slow=isinstance(lost, Late)):
                raise lost

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()
