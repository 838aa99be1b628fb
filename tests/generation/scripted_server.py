"""A server on loopback that does what a test tells it to, one request after another."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from selecttkd_jax.generation import Server


class Script:
    """What the server does, request by request, and what it was asked."""

    def __init__(self, *steps):
        self.steps = list(steps)
        self.requests = []
        self.times = []
        self.most_at_once = 0
        self._busy = set()
        self._lock = threading.Lock()

    def next(self, handler, request):
        with self._lock:
            self.requests.append(request)
            self.times.append(time.monotonic())
            self._busy.add(handler)
            self.most_at_once = max(self.most_at_once, len(self._busy))
            return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]

    def end(self, handler):
        with self._lock:
            self._busy.discard(handler)


@contextmanager
def serving(*steps):
    """A server whose n-th answer is the n-th step, the last one for ever; yields its script and a `Server`."""
    script = Script(*steps)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            step = script.next(self, {"path": self.path, "body": body, "headers": dict(self.headers)})
            try:
                step(self, body)
            except OSError:
                pass  # the client has gone
            finally:
                script.end(self)

        def end_headers(self):
            # A client that has its answer asks again before this handler is done.
            script.end(self)
            super().end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        yield script, Server(url, "tiny", timeout=5.0, retries=3, backoff=0.01, concurrency=4)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send(status, content, **headers):
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()

    def step(handler, body):
        del body
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(raw)

    return step


def say(text, finish="stop"):
    return send(200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]})


def echo(handler, body):
    say(f" {body['messages'][-1]['content'].upper()}\n")(handler, body)


def slow(seconds, then=echo):
    def step(handler, body):
        time.sleep(seconds)
        then(handler, body)

    return step


def complete(answer):
    """Completes prompts, by the text and the reason that a function of the request's body gives."""

    def step(handler, body):
        text, finish = answer(body)
        send(200, {"choices": [{"text": text, "finish_reason": finish}]})(handler, body)

    return step
