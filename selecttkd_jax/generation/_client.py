"""Text from a server: any that speaks OpenAI's HTTP interface, such as vLLM, SGLang or `transformers serve`.

Requests go out from a few threads, one connection each. What may pass (no connection, no answer in time, 408, 429, 5xx,
a body that breaks off) is tried again after a growing wait; what would not (any other 4xx) ends the call at once.
Neither proxies nor redirections are followed: prompts and the key go to the address that was named.
"""

import contextlib
import dataclasses
import email.utils
import http.client
import json
import logging
import os
import queue
import random
import ssl
import threading
import time
import urllib.parse
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from selecttkd_jax._errors import InputError, check_at_least
from selecttkd_jax._outside_files import first_line, parse_json, shorten
from selecttkd_jax.data import Record, render_plain_prompt
from selecttkd_jax.generation._sampling import Sampling

logger = logging.getLogger(__name__)

_MOST_BYTES = 2**26
_LONGEST_WAIT = 120.0
_PASSING = (408, 425, 429)  # and 5xx
_ENDED = ("stop", "eos", "stop_sequence", "tool_calls")


@dataclasses.dataclass(frozen=True)
class Server:
    """Where a model answers, and how patiently it is asked."""

    url: str
    """Base address, for example: http://127.0.0.1:8000/v1."""
    model: str
    """The model's name there."""
    key_variable: str | None = None
    """Environment variable that holds the API key. Left out: none is sent."""
    timeout: float = 600.0
    """Seconds for an answer."""
    retries: int = 5
    """Further tries of a request that failed for a reason that may pass."""
    backoff: float = 1.0
    """Seconds before the first of them, doubled for each further one."""
    concurrency: int = 8
    """Requests at a time."""

    def __post_init__(self) -> None:
        if not _is_address(self.url):
            raise InputError(f"server must be an address such as http://127.0.0.1:8000/v1, got {shorten(self.url)}")
        if urllib.parse.urlsplit(self.url).username is not None:
            raise InputError("the server's address must not hold a password; name an API key by key_variable")
        if not self.model:
            raise InputError("the server's model is missing: name it as the server does")
        check_at_least("timeout", self.timeout, 0.001)
        check_at_least("retries", self.retries, 0)
        check_at_least("backoff", self.backoff, 0)
        check_at_least("concurrency", self.concurrency, 1)

    def headers(self) -> dict[str, str]:
        """Of a request. The key is read when it is needed and kept nowhere.

        Raises:
            InputError: The variable that is to hold the key does not.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        if self.key_variable is None:
            return headers
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise InputError(f"the environment variable {self.key_variable} is to hold the API key and is empty")
        if not (key.isascii() and key.isprintable()):
            raise InputError(f"the environment variable {self.key_variable} holds what no API key can")
        return headers | {"Authorization": f"Bearer {key}"}

    def without_key(self, text: str) -> str:
        """What others say, without the key that they may repeat."""
        key = "" if self.key_variable is None else os.environ.get(self.key_variable, "").strip()
        return text.replace(key, "***") if key else text


class Answer(NamedTuple):
    """What a server answered.

    Attributes:
        text: The answer.
        cut: Whether it ended otherwise than by the model's own choice or a stop text.
        reason: The server's word for how it ended (`finish_reason`).
    """

    text: str
    cut: bool
    reason: str


def ask_server(
    server: Server,
    records: Mapping[int, Record],
    sampling: Sampling,
    *,
    seed: int = 0,
    stop: tuple[str, ...] = (),
    template: str = "chat",
    template_kwargs: Mapping[str, Any] | None = None,
    strip: bool = True,
) -> Iterator[tuple[int, Answer]]:
    """Asks a server to answer the prompts of records, a few at a time.

    Args:
        server: Whom to ask.
        records: By their numbers, which with `seed` give each request a seed of its own.
        sampling: Sent as `temperature`, `top_p`, `max_tokens`, and what else differs from its default by its name.
        seed: Of the draws.
        stop: Texts that end an answer.
        template: `"chat"` sends messages, to which the server applies the model's chat template; `"plain"` sends the
            prompt's bare text to be completed.
        template_kwargs: Options of the chat template, sent as `chat_template_kwargs`.
        strip: Whether white space around an answer is left out.

    Yields:
        Numbers and answers, as they come.

    Raises:
        InputError: The server refuses a request, or does not answer it however often it is asked; names the record.
    """
    server.headers()
    shared: dict[str, Any] = {"model": server.model, **_as_options(sampling)}
    if stop:
        shared["stop"] = list(stop)
    path, bodies = ("/chat/completions", _chat_body) if template == "chat" else ("/completions", _plain_body)

    # Threads take numbers from one queue and put answers into another; the caller alone handles answers.
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    found: queue.SimpleQueue[tuple[int, Answer | BaseException | None]] = queue.SimpleQueue()
    stopping = threading.Event()
    requests = {}
    for index, record in records.items():
        body = shared | {"seed": zlib.crc32(f"{seed} {index}".encode()) % 2**31} | bodies(record, template_kwargs or {})
        requests[index] = json.dumps(body).encode()
        waiting.put(index)

    def work() -> None:
        while not stopping.is_set():
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                break
            try:
                found.put((index, _ask(server, path, requests[index], records[index].source, (seed, index), stopping)))
            except BaseException as error:
                stopping.set()
                found.put((index, error))
        found.put((-1, None))

    # Daemons, so that an interruption does not wait for a server that does not answer.
    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(server.concurrency, len(records)))]
    for worker in workers:
        worker.start()
    failure: BaseException | None = None
    working = len(workers)
    try:
        while working:
            index, answer = found.get()
            if answer is None:
                working -= 1
            elif isinstance(answer, BaseException):
                # Answers that are under way are waited for: they are paid for.
                failure = failure or answer
            else:
                yield index, answer._replace(text=answer.text.strip()) if strip else answer
    finally:
        stopping.set()
    if failure is not None:
        raise failure


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return known and url.isascii() and url.isprintable() and not {" ", "?", "#"} & set(url)


def _as_options(sampling: Sampling) -> dict[str, Any]:
    """Sampling in the words of the interface; what is not OpenAI's own is sent only where it is asked for."""
    asked = {
        field.name: getattr(sampling, field.name)
        for field in dataclasses.fields(sampling)
        if getattr(sampling, field.name) != field.default
    }
    asked.pop("max_new_tokens", None)
    limits = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_new_tokens}
    return asked | limits


def _chat_body(record: Record, template_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [dict(message) for message in record.asked]}
    if record.tools:
        body["tools"] = list(record.tools)
    options = {**template_kwargs, **record.template_kwargs}
    return body | ({"chat_template_kwargs": options} if options else {})


def _plain_body(record: Record, template_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    if template_kwargs:
        raise InputError('template_kwargs are options of a chat template; template = "plain" has none')
    return {"prompt": render_plain_prompt(dataclasses.replace(record, prompt=record.asked, response=()))}


class _Passing(Exception):
    """A failure that may pass, in words, with the seconds that the server asks to wait."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def _ask(
    server: Server, path: str, body: bytes, source: str, draws: tuple[int, int], stopping: threading.Event
) -> Answer:
    """One answer, however many tries it takes."""
    # Threads that failed together do not come back together; the same request waits as long in every run.
    jitter = random.Random(f"{draws}")
    tried = 0
    while True:
        tried += 1
        try:
            return _read_answer(_post(server, path, body, source))
        except _Passing as error:
            reason, wait = str(error), error.wait
        logger.info("%s: %s; try %d of %d", source, reason, tried, server.retries + 1)
        wait = min(max(server.backoff * 2 ** (tried - 1) * jitter.uniform(0.5, 1.0), wait), _LONGEST_WAIT)
        if tried > server.retries or stopping.wait(wait):
            times = "once" if tried == 1 else f"{tried} times"
            raise InputError(
                f"{server.url} did not answer {source}, asked {times}: {reason}; see how the server is and start again"
            )


def _post(server: Server, path: str, body: bytes, source: str) -> bytes:
    """The body of a response.

    Raises:
        InputError: The server refuses the request.
        _Passing: Another try may succeed.
    """
    parts = urllib.parse.urlsplit(server.url)
    deadline = time.monotonic() + server.timeout
    secure = parts.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    headers = server.headers()
    try:
        with contextlib.closing(connect(str(parts.hostname), parts.port, timeout=server.timeout)) as connection:
            connection.request("POST", parts.path.rstrip("/") + path, body, headers)
            with connection.getresponse() as response:
                content = _read(response, deadline)
    except ssl.SSLCertVerificationError as error:
        raise InputError(f"{server.url} cannot be trusted: {first_line(error)}") from None
    except TimeoutError:
        raise _Passing(f"no answer in {server.timeout:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Passing(f"{type(error).__name__}: {first_line(error)[:200]}") from None
    if response.status == 200:
        return content
    said = f"{response.status} {server.without_key(str(response.reason))}: {_message_of(content, server)}"
    if response.status in _PASSING or response.status >= 500:
        raise _Passing(said, _seconds(response.headers.get("Retry-After")))
    raise InputError(f"{server.url} refuses {source}: {said}")


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The body of a response, unless it takes too long or too much."""
    content = bytearray()
    while piece := response.read1(2**16):
        content += piece
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(content) > _MOST_BYTES:
            raise http.client.HTTPException(f"it sends more than {_MOST_BYTES} bytes")
    return bytes(content)


def _read_answer(content: bytes) -> Answer:
    """The first choice of a completion."""
    try:
        choice = parse_json(content, "the answer")["choices"][0]
        message = choice.get("message")
        text = (choice["text"] if message is None else message.get("content")) or ""
        reason = str(choice.get("finish_reason"))
        if not isinstance(text, str):
            raise TypeError(f"its text is {type(text).__name__}")
    except (InputError, LookupError, TypeError, AttributeError) as error:
        raise _Passing(f"what it sends is no completion ({first_line(error)[:200]})") from None
    return Answer(text, reason not in _ENDED, reason)


def _message_of(content: bytes, server: Server) -> str:
    """What a server says of an error, in a line, without the key that it may repeat."""
    text = content.decode("utf-8", "replace")
    text = server.without_key(text)
    try:
        said = json.loads(text)
        for name in ("error", "message", "detail"):
            if isinstance(said, dict) and name in said:
                said = said[name]
        text = said if isinstance(said, str) else json.dumps(said)
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())[:300] or "no reason given"


def _seconds(retry_after: str | None) -> float:
    """The seconds of a Retry-After header, given as a number or a date; 0 where it says nothing."""
    try:
        return max(float(retry_after or 0), 0.0)
    except ValueError:
        pass
    try:
        moment = email.utils.parsedate_to_datetime(str(retry_after))
        return max(moment.timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0
