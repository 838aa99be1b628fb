"""The hand-over commands of docs/engines.md, as they stand there, against servers that answer as vLLM and SGLang do.

vLLM: `POST /collective_rpc` (only in its development mode) takes {"method", "args", "kwargs"}, calls the worker's
`reload_weights(weights_path=...)` and answers {"results": [null]}; an exception there is a 500. `POST
/reset_prefix_cache` has no body. SGLang: `POST /update_weights_from_disk` takes {"model_path", ...}, flushes its cache
unless told not to, and answers {"success", "message"}, with 400 where it failed. Both read bodies as JSON only.

Source: vllm/entrypoints/serve/rpc/api_router.py and vllm/v1/worker/gpu_model_runner.py; SGLang's documentation,
"SGLang for RL Systems", and sglang/srt/entrypoints/http_server.py.
"""

import json
import re
import shutil
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from selecttkd_jax._errors import InputError
from selecttkd_jax.sources import EngineConfig

pytestmark = [
    pytest.mark.one_stack,
    pytest.mark.skipif(shutil.which("curl") is None, reason="the page's commands call curl"),
]

PAGE = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()


class Handler(BaseHTTPRequestHandler):
    """Loads what is a model directory, and nothing else."""

    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_json = self.headers["Content-Type"] == "application/json"
        body = json.loads(raw) if raw and is_json else None
        self.server.calls.append((self.path, body))
        status, answer = self.respond(body)
        content = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def respond(self, body):
        if self.path == "/reset_prefix_cache":
            return 200, None
        if body is None:
            return 422, {"detail": "a JSON body is needed"}
        if self.path == "/collective_rpc":
            if "method" not in body:
                return 400, {"detail": "Missing 'method' in request body"}
            known = body["method"] == "reload_weights" and set(body.get("kwargs", {})) <= {"weights_path"}
            loads = known and is_model(body["kwargs"]["weights_path"])
            return (200, {"results": [None]}) if loads else (500, {"error": {"message": "EngineCore failed"}})
        if self.path == "/update_weights_from_disk":
            loads = is_model(body["model_path"])
            told = {"success": loads, "message": "" if loads else "Failed to get weights iterator"}
            return (200 if loads else 400), told
        return 404, {"detail": "Not Found"}

    def log_message(self, *arguments):
        """Says nothing."""


def is_model(directory):
    return (Path(directory) / "config.json").is_file()


@pytest.fixture
def server():
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.calls = []
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def vllm_command(address, directory):
    """`reload.sh` of the page, and the [engine] section's call of it."""
    (script,) = re.findall(r"```sh\n(.*?collective_rpc.*?)```", PAGE, re.DOTALL)
    (directory / "reload.sh").write_text(re.sub(r"(?m)^  ", "", script).replace("http://127.0.0.1:8000", address))
    (called,) = re.findall(r'(?m)^reload = (\["sh".*\])$', PAGE)
    words = tomllib.loads(f"reload = {called}")["reload"]
    return tuple(str(directory / word) if word == "reload.sh" else word for word in words)


def sglang_command(address, directory):
    del directory
    (written,) = re.findall(r"`(reload = \[\"curl\".*?\])`", PAGE, re.DOTALL)
    words = tomllib.loads(re.sub(r"\n *", " ", written))["reload"]
    return tuple(word.replace("http://127.0.0.1:30000", address) for word in words)


CALLS = {
    vllm_command: lambda path: [
        ("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}}),
        ("/reset_prefix_cache", None),
    ],
    sglang_command: lambda path: [("/update_weights_from_disk", {"model_path": path})],
}


@pytest.mark.parametrize("command", CALLS, ids=["vllm", "sglang"])
def test_a_page_s_command_hands_a_directory_over_and_notices_where_it_fails(server, command, tmp_path):
    address = f"http://127.0.0.1:{server.server_address[1]}"
    engine = EngineConfig(f"{address}/v1", "student", reload=command(address, tmp_path))
    model = tmp_path / "a run" / "step-8"
    model.mkdir(parents=True)
    with pytest.raises(InputError, match=r"engine.reload \(\w+\) ended with exit code"):
        engine.hand_over(model)
    assert len(server.calls) == 1  # nothing follows what failed
    (model / "config.json").write_text("{}")
    server.calls.clear()
    engine.hand_over(model)
    assert server.calls == CALLS[command](str(model))
