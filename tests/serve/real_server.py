"""The client against a real `transformers serve` on loopback, on the CPU: `make serve-test`.

Its name keeps it out of the ordinary suite, whose environments have no server; here nothing is skipped. What a server
does wrong is scripted in generation/test_client.py; this holds that a real one is understood when it does right, and
when it hangs or goes away.
"""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from runs import tiny_run

from selecttkd_jax import data, generation, models, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.generation import Sampling, Server, ask_server
from selecttkd_jax.methods import OnPolicyKd
from selecttkd_jax.metrics import read_metrics
from selecttkd_jax.sources import EngineConfig

SAMPLING = Sampling(temperature=0.0, max_new_tokens=12)
RECORDS = [
    data.Record(({"role": "user", "content": " ".join(tiny_run.WORDS[start : start + 3])},), source=f"line {start + 1}")
    for start in range(10)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model that ends some answers before they begin, some later, and some not at all."""
    directory = tmp_path_factory.mktemp("serve")
    teacher = Path(tiny_run.build(directory).models.teacher)
    tokenizer = data.load_tokenizer(teacher)
    pretrained = models.from_pretrained(teacher)
    embedding = pretrained.params["embedding"]
    stops = data.stop_ids(tokenizer, teacher)
    params = pretrained.params | {"embedding": embedding.at[stops[0]].multiply(-2.0)}
    models.save_pretrained(directory / "ending", replace(pretrained, params=params), jnp.dtype("float32"), stops)
    return directory / "ending"


class Serving:
    """A server process that can be stopped, frozen and started again on its port; of one model, or of any."""

    def __init__(self, model):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model = model
        self.start()

    def start(self):
        program = Path(sys.executable).with_name("transformers")
        place = ["--host", "127.0.0.1", "--port", str(self.port)]
        model = [] if self.model is None else [str(self.model)]
        self.process = subprocess.Popen([str(program), "serve", *model, "--device", "cpu", *place])

    def wait(self):
        until = time.monotonic() + 120
        while time.monotonic() < until:
            assert self.process.poll() is None, "the server ended"
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                time.sleep(0.2)
            finally:
                connection.close()
        raise AssertionError("the server did not come up")

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def serving(model):
    serving = Serving(model)
    try:
        serving.wait()
        yield serving
    finally:
        serving.stop()


@pytest.fixture
def server(serving, model):
    return Server(f"http://127.0.0.1:{serving.port}/v1", str(model), timeout=60, retries=8, backoff=0.5, concurrency=3)


def write_ourselves(model, template):
    """The same model's greedy answers by our own decoding: text, and whether it was cut."""
    tokenizer = data.load_tokenizer(model)
    pretrained = models.from_pretrained(model)
    stops = data.stop_ids(tokenizer, model)
    answers = generation.generate(
        pretrained.config,
        pretrained.params,
        [data.render_prompt(record, tokenizer, template) for record in RECORDS],
        sampling=SAMPLING,
        stop_ids=stops,
        key=jax.random.key(0),
        vocab_size=data.tokenizer_size(tokenizer),
    )
    return [
        (tokenizer.decode(answer, skip_special_tokens=True).strip(), not (answer and answer[-1] in stops))
        for answer in answers
    ]


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_the_answers_are_what_the_model_says_by_our_own_decoding(server, model, template, tmp_path):
    expected = write_ourselves(model, template)
    found = dict(ask_server(server, dict(enumerate(RECORDS)), SAMPLING, template=template))
    assert [(found[index].text, found[index].cut) for index in range(len(RECORDS))] == expected
    kinds = {"empty" if not text else "cut" if cut else "whole" for text, cut in expected}
    assert kinds == {"empty", "cut", "whole"}
    # As a file that training reads.
    path = tmp_path / "answers.jsonl"
    texts = runs.generate_from_server(server, RECORDS, SAMPLING, path, template=template)
    assert texts == [text for text, _ in expected]
    finishes = [json.loads(line)["finish"] for line in path.read_text().splitlines()]
    assert finishes == ["empty" if not text else "length" if cut else "stop" for text, cut in expected]
    assert len(data.read_records(path)) == sum(bool(text) for text, _ in expected)


def test_a_model_that_is_not_there_is_refused_in_the_servers_words(server):
    with pytest.raises(InputError, match=r"refuses line 1: 4\d\d .*nobody"):
        dict(ask_server(replace(server, model="nobody/none"), {0: RECORDS[0]}, SAMPLING))


def test_a_server_that_hangs_is_given_up_or_waited_for(server, serving):
    serving.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(InputError, match=r"asked 2 times: no answer in 0\.5 s"):
            dict(ask_server(replace(server, timeout=0.5, retries=1), {0: RECORDS[0]}, SAMPLING))
    finally:
        serving.process.send_signal(signal.SIGCONT)
    assert len(dict(ask_server(server, {0: RECORDS[0]}, SAMPLING))) == 1


def test_a_server_that_goes_away_is_named_and_its_file_goes_on_when_it_is_back(server, serving, tmp_path):
    path = tmp_path / "answers.jsonl"
    expected = runs.generate_from_server(server, RECORDS, SAMPLING)
    half = runs.generate_from_server(server, RECORDS[:4], SAMPLING, path)
    assert half == expected[:4]
    serving.stop()
    with pytest.raises(InputError, match=r"did not answer .*, asked once: ConnectionRefusedError"):
        runs.generate_from_server(replace(server, retries=0), RECORDS, SAMPLING, path)
    assert len(path.read_text().splitlines()) == 4
    serving.start()  # and asked at once: it is not up yet
    assert runs.generate_from_server(replace(server, retries=20), RECORDS, SAMPLING, path) == expected


@pytest.mark.usefixtures("lenient_promotion")
def test_a_run_learns_from_what_the_handed_over_student_says_by_our_own_decoding(tmp_path):
    config = tiny_run.build(tmp_path)
    (Path(config.models.student) / "generation_config.json").unlink()
    sampling = Sampling(temperature=0.0, max_new_tokens=8)
    serving = Serving(None)
    try:
        serving.wait()
        engine = EngineConfig(f"http://127.0.0.1:{serving.port}/v1", "{directory}", timeout=60, concurrency=2)
        run = runs.train(
            replace(
                config,
                method=OnPolicyKd(sampling=sampling),
                objective=ObjectiveConfig(),
                engine=engine,
                training=replace(config.training, steps=2),
            )
        )
    finally:
        serving.stop()
    assert [row["rollouts/staleness"] for row in read_metrics(run.metrics)[1:]] == [0, 0]
    for step in (0, 1):
        student = run.directory / "engine" / f"step-{step}"
        pretrained, tokenizer = models.from_pretrained(student), data.load_tokenizer(student)
        stops = data.stop_ids(tokenizer, student)
        text = (run.directory / "rollouts" / f"step-{step + 1}.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        answers = generation.generate(
            pretrained.config,
            pretrained.params,
            [tokenizer(row["prompt"], add_special_tokens=False)["input_ids"] for row in rows],
            sampling=sampling,
            stop_ids=stops,
            key=jax.random.key(0),
            vocab_size=data.tokenizer_size(tokenizer),
        )
        expected = [(tokenizer.decode(answer, skip_special_tokens=True), answer[-1] in stops) for answer in answers]
        assert [(row["completion"], row["finish"] == "stop") for row in rows] == expected and len(rows) == 4
