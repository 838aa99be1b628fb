"""A client against a small server that misbehaves in every way a real one does."""

import logging
import time

import pytest
from generation.scripted_server import echo, say, send, serving, slow

from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Record
from selecttkd_jax.generation import Sampling, Server, ask_server

pytestmark = pytest.mark.one_stack
SAMPLING = Sampling(temperature=0.5, top_p=0.9, max_new_tokens=20)
KEY = "sk-secret-0123456789"


def close_mid_body(handler, body):
    del body
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')


def close_at_once(handler, body):
    del body
    handler.connection.close()


def trickle(handler, body):
    """A byte now and then: each arrives in time, the whole does not."""
    del body
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def records(count=1):
    return {
        number: Record(({"role": "user", "content": f"question {number}"},), source=f"prompts.jsonl line {number + 1}")
        for number in range(count)
    }


def ask(server, count=1, **options):
    return dict(ask_server(server, records(count), SAMPLING, **options))


def replaced(server, **changes):
    return Server(**{**{name: getattr(server, name) for name in server.__dataclass_fields__}, **changes})


def test_what_is_asked_and_what_is_answered():
    with serving(echo) as (script, server):
        tools = [{"type": "function", "function": {"name": "search"}}]
        asked = Record(
            ({"role": "system", "content": "s"}, {"role": "user", "content": "a"}),
            ({"role": "assistant", "content": "stored"},),
            tools=tools,
            template_kwargs={"enable_thinking": False},
        )
        options = {"seed": 7, "stop": ("END",), "template_kwargs": {"date_string": "today"}}
        ((index, answer),) = ask_server(server, {3: asked}, SAMPLING, **options)
        assert (index, answer) == (3, ("A", False, "stop"))
        (request,) = script.requests
        body = dict(request["body"])
        seed = body.pop("seed")
        assert request["path"] == "/v1/chat/completions" and "Authorization" not in request["headers"]
        assert body == {
            "model": "tiny",
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 20,
            "stop": ["END"],
            "tools": tools,
            "chat_template_kwargs": {"date_string": "today", "enable_thinking": False},
        }
        dict(ask_server(server, {3: asked, 4: asked}, Sampling(top_k=5), **options))
        seeds = {request["body"]["seed"] for request in script.requests}
        assert len(seeds) == 2 and seed in seeds and all(0 <= seed < 2**31 for seed in seeds)
        assert script.requests[-1]["body"]["top_k"] == 5


def test_plain_prompts_are_completed():
    completion = send(200, {"choices": [{"text": " done", "finish_reason": "length"}]})
    with serving(completion) as (script, server):
        assert ask(server, template="plain") == {0: ("done", True, "length")}
        assert script.requests[0]["path"] == "/v1/completions" and script.requests[0]["body"]["prompt"] == "question 0"
        with pytest.raises(InputError, match="template_kwargs are options of a chat template"):
            ask(server, template="plain", template_kwargs={"a": 1})
        several = Record(({"role": "system", "content": "s"}, {"role": "user", "content": "a"}), source="line 4")
        with pytest.raises(InputError, match='line 4: template = "plain" takes one prompt text'):
            dict(ask_server(server, {0: several}, SAMPLING, template="plain"))


def test_no_more_requests_than_allowed_at_a_time_and_all_answers():
    with serving(slow(0.02)) as (script, server):
        found = ask(server, 17)
        assert found == {number: (f"QUESTION {number}", False, "stop") for number in range(17)}
        assert script.most_at_once == 4
        assert ask(server, 0) == {}


@pytest.mark.parametrize(
    "step",
    [
        send(500, {"error": {"message": "out of memory"}}),
        send(503, b"<html>\nbusy</html>"),
        send(408, b""),
        send(200, b'{"choices": [{"message"'),
        send(200, {"choices": []}),
        send(200, {"error": "none"}),
        send(200, [1]),
        close_mid_body,
        close_at_once,
    ],
    ids=["500", "503", "408", "cut JSON", "no choices", "error", "list", "closed in mid-body", "closed at once"],
)
def test_what_may_pass_is_tried_again(step):
    with serving(step, step, echo) as (script, server):
        assert ask(server) == {0: ("QUESTION 0", False, "stop")}
        assert len(script.requests) == 3
        assert script.requests[0]["body"] == script.requests[2]["body"]
    with serving(step) as (script, server):
        with pytest.raises(
            InputError, match=r"did not answer prompts.jsonl line 1, asked 4 times: .*; see how"
        ) as caught:
            ask(server)
        assert len(script.requests) == 4 and "\n" not in str(caught.value)


def test_a_server_that_is_down_is_named():
    with serving(echo) as (_, server):
        pass
    with pytest.raises(InputError, match=r"127.0.0.1:\d+/v1 did not answer .* asked 4 times: ConnectionRefused"):
        ask(server)


@pytest.mark.parametrize("step", [slow(0.6), trickle], ids=["silent", "trickling"])
def test_a_slow_answer_is_given_up(step):
    with serving(step, echo) as (script, server):
        assert ask(replaced(server, timeout=0.2)) == {0: ("QUESTION 0", False, "stop")}
        assert len(script.requests) == 2
    with serving(step) as (_, server):
        with pytest.raises(InputError, match=r"asked once: no answer in 0\.2 s"):
            ask(replaced(server, timeout=0.2, retries=0))


def test_waits_grow_and_a_server_may_ask_for_longer():
    busy = send(429, b"slow down", Retry_After="0.3")
    with serving(busy, echo) as (script, server):
        ask(server)
        assert 0.3 <= script.times[1] - script.times[0] < 2
    with serving(send(500, b""), send(500, b""), send(500, b""), echo) as (script, server):
        ask(replaced(server, backoff=0.1))
        waits = [later - earlier for earlier, later in zip(script.times, script.times[1:], strict=False)]
        for number, wait in enumerate(waits):
            assert 0.05 * 2**number <= wait < 0.1 * 2**number + 0.5


@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (
            400,
            {"error": {"message": "This model's maximum\ncontext length is 64 tokens", "code": 400}},
            "maximum context",
        ),
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}."}}, r"Incorrect API key provided: \*\*\*\."),
        (404, {"object": "error", "message": "The model `tiny` does not exist."}, "The model `tiny` does not exist."),
        (422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, "field required"),
        (401, f"{'wrong ' * 48}{KEY}".encode(), "wrong wrong"),  # would be cut within the key
        (403, b"", "no reason given"),
        (307, b"elsewhere", "elsewhere"),
    ],
)
def test_what_would_not_pass_ends_the_call_at_once(status, content, said, monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with serving(send(status, content, Location="http://127.0.0.1:1/")) as (script, server):
        with pytest.raises(InputError, match=rf"refuses prompts.jsonl line 1: {status} .*{said}") as caught:
            ask(replaced(server, key_variable="MY_KEY"))
        assert len(script.requests) == 1 and "\n" not in str(caught.value)
        assert script.requests[0]["headers"]["Authorization"] == f"Bearer {KEY}"
    assert KEY[:6] not in str(caught.value) + caplog.text + repr(server)


def test_a_refusal_ends_the_others_and_keeps_what_was_answered():
    def third_is_refused(handler, body):
        if body["messages"][-1]["content"] == "question 2":
            return send(400, b"too long")(handler, body)
        return slow(0.05)(handler, body)

    found = {}
    with serving(third_is_refused) as (script, server):
        with pytest.raises(InputError, match="refuses prompts.jsonl line 3: 400 Bad Request: too long"):
            for index, answer in ask_server(server, records(40), SAMPLING):
                found[index] = answer
        assert {0, 1} <= found.keys() and len(script.requests) < 12


def test_a_caller_that_stops_stops_the_asking():
    with serving(slow(0.02)) as (script, server):
        answers = ask_server(server, records(100), SAMPLING)
        next(answers)
        answers.close()
        time.sleep(0.2)
        assert len(script.requests) <= 12


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("", "stop", ("", False, "stop")),
        (None, "stop", ("", False, "stop")),
        ("half an ans", "length", ("half an ans", True, "length")),
        ("half", "abort", ("half", True, "abort")),
        ("half", None, ("half", True, "None")),
    ],
)
def test_empty_and_cut_answers_are_marked(text, finish, expected):
    with serving(say(text, finish)) as (_, server):
        assert ask(server) == {0: expected}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "server must be an address such as http"),
        ({"url": "ftp://host/v1"}, "server must be an address"),
        ({"url": "http://host:99999/v1"}, "server must be an address"),
        ({"url": "http://host/v1?key=1"}, "server must be an address"),
        ({"url": "http://h\n/v1"}, "server must be an address"),
        ({"url": "http://me:word@host/v1"}, "must not hold a password"),
        ({"model": ""}, "model is missing"),
        ({"timeout": 0}, "timeout must be at least"),
        ({"retries": -1}, "retries must be at least 0"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
    ],
)
def test_what_no_server_can_be_asked_with(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        Server(**{"url": "http://host/v1", "model": "tiny", **changes})
    assert "word" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(("value", "message"), [(None, "is to hold the API key and is empty"), ("a\nb", "holds")])
def test_a_key_that_is_none_is_refused_before_anything_is_sent(value, message, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with serving(echo) as (script, server):
        with pytest.raises(InputError, match=f"variable MY_KEY {message}"):
            ask(replaced(server, key_variable="MY_KEY"))
        assert not script.requests
