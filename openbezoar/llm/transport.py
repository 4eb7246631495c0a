"""One request to a server over HTTP: within a deadline, with a reply of bounded size, to the
address in the recipe and no other.

Reads and writes nothing but connections. A client's own time limits are between bytes, so a
server that drips would hold a run for ever; here the deadline is of the whole request, from
the connection to the last byte. That needs cancelling, so all requests of a model run in
one event loop in a thread of its own, and the threads that ask wait for it.
"""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

from openbezoar.llm.replies import Malformed

MOVED = (301, 302, 303, 307, 308)
SAME_REQUEST = (307, 308)  # moved, to be asked again in the same way
HOPS = 3  # within one origin, as from a path without to one with a slash
ERROR_BYTES = 1 << 16  # of a reply that is no answer
CLOSING = 5.0  # seconds that the end of connections is waited for


class Late(Exception):
    """No whole reply by the deadline."""


class Gone(Exception):
    """No connection, or one that broke. sent: the request may have reached the server."""

    def __init__(self, message: str, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


@dataclass(frozen=True)
class Reply:
    """What came back: status, headers by lower-case names, the unpacked body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@cache
def _trusted() -> Any:
    """Whose certificates are trusted; reading them takes a while, and all clients may share them."""
    import httpx2

    return httpx2.create_ssl_context()


class Transport:
    """Connections to the addresses of one model; ``post`` may be called from many threads."""

    def __init__(self, key: str | None, timeout: float, most: int, direct: bool = False) -> None:
        """timeout: seconds of a whole request. most: connections that are kept open. direct: past every proxy."""
        import httpx2

        self._http: Any = httpx2
        self.timeout = timeout
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": "openbezoar",
        }
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx2.AsyncClient(
            headers=headers,
            verify=_trusted(),
            timeout=None,  # the deadline is kept here
            follow_redirects=False,
            trust_env=not direct,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=most),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="requests", daemon=True)
        self._thread.start()

    def post(self, url: str, body: bytes, largest: int) -> Reply:
        """Send JSON. largest: bytes that an answer may have.

        Raises Late, Gone or Malformed (too large, packed in a way that was not asked for or
        cannot be unpacked). A redirect is followed within its origin; any other is given back.
        """
        return asyncio.run_coroutine_threadsafe(self._post(url, body, largest), self._loop).result()

    def close(self) -> None:
        """Let go of the connections."""
        if self._loop.is_closed():
            return
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(CLOSING)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSING)
        if not self._thread.is_alive():
            self._loop.close()

    async def _end(self) -> None:
        """Nothing is under way any more but where the work was interrupted."""
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._client.aclose()

    async def _post(self, url: str, body: bytes, largest: int) -> Reply:
        http = self._http
        try:
            async with asyncio.timeout(self.timeout):
                at = http.URL(url)
                for _ in range(HOPS):
                    reply = await self._once(at, body, largest)
                    to = _within(http, at, reply) if reply.status in SAME_REQUEST else None
                    if to is None:
                        return reply
                    at = to
                raise Malformed(f"more than {HOPS - 1} redirects")
        except TimeoutError:
            raise Late(f"no whole answer within {self.timeout:g} s") from None
        except (http.HTTPError, http.InvalidURL, OSError) as error:
            raise Gone(
                str(error.__cause__ or error) or type(error).__name__,
                not isinstance(error, (http.ConnectError, http.InvalidURL)),
            ) from None

    async def _once(self, url: Any, body: bytes, largest: int) -> Reply:
        async with self._client.stream("POST", url, content=body) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            answers = 200 <= response.status_code < 300
            unpacked = _Unpacked(headers.get("content-encoding", ""), largest if answers else ERROR_BYTES, answers)
            async for chunk in response.aiter_raw():
                if not unpacked.feed(chunk):
                    break
            return Reply(response.status_code, headers, unpacked.whole())


def _within(http: Any, at: Any, reply: Reply) -> Any:
    """Where a reply redirects to, if that has the same scheme, host and port; else None."""
    to = _location(http, at, reply)
    return to if to is not None and _origin(to) == _origin(at) else None


def _location(http: Any, at: Any, reply: Reply) -> Any:
    try:
        return at.join(reply.headers.get("location", ""))
    except (http.InvalidURL, ValueError):
        return None


def _origin(url: Any) -> Sequence[Any]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def redirected(url: str, reply: Reply) -> str:
    """Scheme, host and port that a reply redirects to, as it may be shown: no path or query, where secrets are put."""
    import httpx2

    to = _location(httpx2, httpx2.URL(url), reply)
    if to is None or not to.host:
        return "nowhere"
    return f"{to.scheme}://{to.host}" + (f":{to.port}" if to.port else "")


class _Unpacked:
    """A body as it comes, unpacked, and never larger than it may be."""

    def __init__(self, encoding: str, largest: int, whole: bool) -> None:
        """whole: whether too much is an error; otherwise what is too much is left out."""
        self.largest, self.needs_all = largest, whole
        self.body = bytearray()
        encoding = encoding.strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise Malformed(f"a reply packed as {encoding[:40]}, which was not asked for")
        # 32: gzip or zlib, whichever its head says.
        self._zip = zlib.decompressobj(32 + zlib.MAX_WBITS) if encoding not in ("", "identity") else None

    def feed(self, chunk: bytes) -> bool:
        """Take more in; False if no more is wanted."""
        room = self.largest - len(self.body)
        if self._zip is not None:
            try:
                chunk = self._zip.decompress(chunk, room + 1)
            except zlib.error:
                raise Malformed("a reply that cannot be unpacked") from None
        self.body += chunk[: room + 1]
        if len(self.body) <= self.largest:
            return self._zip is None or not self._zip.eof
        if self.needs_all:
            raise Malformed(f"a reply of more than {self.largest:,} bytes, which the tokens asked for cannot fill")
        del self.body[self.largest :]
        return False

    def whole(self) -> bytes:
        if self._zip is not None and not self._zip.eof and self.needs_all:
            raise Malformed("a packed reply that is cut off")
        return bytes(self.body)
