"""Text of a server in place of the student's: its tokens, whose weights wrote it, and what is read again."""

import json
import random
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from data.small_tokenizers import build_tokenizer
from generation.scripted_server import complete, send, serving

from selecttkd_jax._errors import InputError
from selecttkd_jax.data import Rows, eval_batches
from selecttkd_jax.generation import KeepShare, Sampling
from selecttkd_jax.sharding import MeshConfig, make_mesh
from selecttkd_jax.sources import EngineConfig, EngineFiles, EngineWriters, split_prompts
from selecttkd_jax.training import Report

pytestmark = pytest.mark.one_stack
LENGTH, ROWS = 40, 3
PROMPTS = ["What is the capital of France?", "<|im_start|>user\n How many eggs?<|im_end|>\n", "hen"]
SAMPLING = Sampling(temperature=0.7, max_new_tokens=12)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def batch_of(prompts):
    texts = [np.array([*prompt, 70, 71], np.int32) for prompt in prompts]
    response = [np.arange(len(text)) >= len(prompt) for text, prompt in zip(texts, prompts, strict=True)]
    (batch,) = eval_batches(Rows(tuple(texts), tuple(response), LENGTH, len(texts)), len(texts), LENGTH)
    return batch


def state_at(step):
    return SimpleNamespace(step=step, params={"weight": np.float32(step)}, key=None)


class Engine:
    """A process with an engine: its reloads go into a file, and a student is the number of its step."""

    def __init__(self, server, directory, tokenizer, *, every=1, made_with=1, **changes):
        self.log = directory / "reloads"
        reload = ("sh", "-c", f'cat "$1/weight" >> {self.log}', "sh", "{directory}")
        options = {"url": server.url, "model": "tiny", "timeout": 5.0, "retries": 0, "every": every, "reload": reload}
        self.config = EngineConfig(**options | changes)
        self.stop, self.end = encode(tokenizer, "<|endoftext|><|im_end|>")
        self.writers = EngineWriters(
            lambda who, sampling: (who, sampling),
            self.config,
            self.save,
            directory / "engine",
            EngineFiles(directory / "rollouts", made_with),
            make_mesh(MeshConfig()),
            tokenizer,
            (self.stop, self.end),
            self.end,
        )
        self.tokenizer = tokenizer

    def save(self, params, directory):
        directory.mkdir(parents=True)
        (directory / "weight").write_text(f"{int(params['weight'])} ")

    def ask(self, step, chosen=(True,) * ROWS, prompts=PROMPTS):
        batch = batch_of([encode(self.tokenizer, prompt) for prompt in prompts])
        key = jax.random.fold_in(jax.random.key(0), step)
        return self.writers("student", SAMPLING)(state_at(step), batch, np.array(chosen), key)

    def texts(self, step, **options):
        return responses(self.ask(step, **options))

    def staleness(self):
        return self.writers.report(Report({}, 1.0)).numbers.get("rollouts/staleness")

    def reloads(self):
        return self.log.read_text().split()


def responses(batch):
    return [labels[mask].tolist() for labels, mask in zip(batch.labels, batch.loss_mask, strict=True)]


def at_random(body):
    return " ".join(random.choices(["Paris", "eggs", "a red boat", "Thank you!"], k=2)), "stop"


@pytest.mark.parametrize(
    ("said", "finish", "expected"),
    [
        (" The capital\n", "stop", (" The capital\n", True)),
        ("The capital", "length", ("The capital", False)),
        ("", "stop", ("", True)),
        ("", "length", ("", False)),
        ("Paris<|im_end|>\nuser", "length", ("Paris", True)),
    ],
)
def test_an_answer_is_its_text_tokenised_again_and_ends_with_a_stop_token_unless_it_was_cut(
    tokenizer, tmp_path, said, finish, expected
):
    with serving(complete(lambda body: (said, finish))) as (_, server):
        engine = Engine(server, tmp_path, tokenizer)
        batch = engine.ask(0)
    text, ended = expected
    assert responses(batch) == [[*encode(tokenizer, text), *([engine.end] if ended else [])]] * ROWS
    for row, prompt in enumerate(split_prompts(batch_of([encode(tokenizer, prompt) for prompt in PROMPTS]))):
        np.testing.assert_array_equal(batch.input_ids[row, : len(prompt)], prompt)


def test_an_answer_of_more_tokens_than_were_asked_for_is_cut_there(tokenizer, tmp_path):
    said = "short story about a small red boat " * 4
    with serving(complete(lambda body: (said, "stop"))) as (_, server):
        assert Engine(server, tmp_path, tokenizer).texts(0) == [encode(tokenizer, said)[:12]] * ROWS
    assert len(encode(tokenizer, said)) > 12


def test_what_is_asked(tokenizer, tmp_path):
    """Only rows that are chosen, as text, each with its own seed and at the address of the weights."""
    with serving(complete(at_random)) as (script, server):
        engine = Engine(server, tmp_path, tokenizer, model="{directory}", reload=())
        batch = engine.ask(4, chosen=(True, False, True))
    bodies = {request["body"]["prompt"]: request["body"] for request in script.requests}
    assert set(bodies) == {PROMPTS[0], PROMPTS[2]} and {request["path"] for request in script.requests} == {
        "/v1/completions"
    }
    assert len({body.pop("seed") for body in bodies.values()}) == 2
    told = {"model": str(tmp_path / "engine" / "step-4"), "temperature": 0.7, "top_p": 1.0, "max_tokens": 12}
    assert bodies[PROMPTS[0]] == told | {"prompt": PROMPTS[0]}
    assert responses(batch)[1] == [70, 71]


@pytest.mark.parametrize("begin", ["<|other_end|>", None])
def test_a_begin_token_that_the_server_puts_in_front_itself_is_not_sent(tmp_path, caplog, begin):
    tokenizer = build_tokenizer(tmp_path / "tokenizer", begin="<|other_end|>")
    with serving(complete(at_random)) as (script, server):
        Engine(server, tmp_path, tokenizer).texts(0, prompts=[f"{begin or ''}hen{row}" for row in range(ROWS)])
    assert {request["body"]["prompt"] for request in script.requests} == {"hen0", "hen1", "hen2"}
    # A prompt without it cannot be sent as text: said once.
    assert caplog.text.count("the tokenizer reads the text of a prompt as other tokens") == (begin is None)


def test_weights_are_handed_over_every_few_steps_and_their_age_is_stated(tokenizer, tmp_path):
    with serving(complete(at_random)) as (script, server):
        engine = Engine(server, tmp_path, tokenizer, every=2)
        ages = []
        # Nobody asks at step 4: the weights after 5 steps are the first of those two.
        for step in (0, 1, 2, 3, 5, 6, 7):
            engine.ask(step)
            ages.append(engine.staleness())
            assert engine.staleness() is None
        assert len(script.requests) == 7 * ROWS
    assert ages == [0, 1, 0, 1, 0, 0, 1] and engine.reloads() == ["0", "2", "5", "6"]
    assert sorted(path.name for path in (tmp_path / "engine").iterdir()) == ["step-5", "step-6"]
    rows = [json.loads(line) for line in (tmp_path / "rollouts" / "step-8.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in rows} == set(PROMPTS) and {row["after"] for row in rows} == {6}


def test_a_run_that_takes_steps_again_reads_what_was_written_and_goes_on_with_the_same_weights(tokenizer, tmp_path):
    with serving(complete(at_random)) as (script, server):
        first = Engine(server, tmp_path, tokenizer, every=3)
        written = [first.texts(step) for step in range(5)]
        asked = len(script.requests)
        # From step 2, as after a checkpoint there; nothing is handed over for text that is there.
        again = Engine(server, tmp_path, tokenizer, every=3)
        for step in (2, 3, 4):
            assert again.texts(step) == written[step] and again.staleness() == step % 3
        assert len(script.requests) == asked and again.reloads() == ["0", "3"]
        # The server is told anew: it may have gone on since, or have begun anew.
        again.ask(5)
        assert again.staleness() == 2 and again.reloads() == ["0", "3", "3"]
        again.ask(6)
        assert again.staleness() == 0 and again.reloads() == ["0", "3", "3", "6"]


def test_a_step_that_was_stopped_half_way_asks_for_the_rest(tokenizer, tmp_path):
    path = tmp_path / "rollouts" / "step-1.jsonl"
    with serving(complete(at_random)) as (script, server):
        written = Engine(server, tmp_path, tokenizer).texts(0)
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(lines[0] + lines[1][:-9])
        there = PROMPTS.index(json.loads(lines[0])["prompt"])
        found = Engine(server, tmp_path, tokenizer).texts(0)
        assert found[there] == written[there] and len(script.requests) == 2 * ROWS - 1
        assert Engine(server, tmp_path, tokenizer).texts(0) == found and len(script.requests) == 2 * ROWS - 1


def test_text_of_another_run_is_not_read(tokenizer, tmp_path):
    with serving(complete(at_random)) as (script, server):
        Engine(server, tmp_path, tokenizer).texts(0)
        (tmp_path / "engine" / "step-0" / "weight").unlink()
        (tmp_path / "engine" / "step-0").rmdir()
        found = Engine(server, tmp_path, tokenizer, made_with=2).texts(0)
        assert len(script.requests) == 2 * ROWS
        assert Engine(server, tmp_path, tokenizer, made_with=2).texts(0) == found and len(script.requests) == 2 * ROWS


def test_where_the_weights_are_gone_those_at_hand_are_handed_over(tokenizer, tmp_path):
    with serving(complete(at_random)) as (_, server):
        Engine(server, tmp_path, tokenizer, every=4).texts(1)
        (tmp_path / "engine" / "step-1").rename(tmp_path / "elsewhere")
        again = Engine(server, tmp_path, tokenizer, every=4)
        again.texts(1), again.staleness(), again.texts(2)
        assert again.staleness() == 0 and again.reloads() == ["1", "2"]


def test_a_reload_that_fails_ends_the_run_with_its_last_words(tokenizer, tmp_path):
    with serving(complete(at_random)) as (script, server):
        for command, words in [
            (
                (sys.executable, "-c", "import sys; sys.exit('no such model')", "{directory}"),
                "exit code 1: no such model",
            ),
            (("/no/such/program", "{directory}"), "engine.reload failed: .*No such file"),
            (("sh", "-c", "exec sleep 9", "{directory}"), "engine.reload failed: .*timed out"),
        ]:
            engine = Engine(server, tmp_path / command[0].replace("/", "_"), tokenizer, reload=command, timeout=0.5)
            with pytest.raises(InputError, match=words):
                engine.ask(0)
        assert not script.requests


def test_a_server_that_fails_ends_the_run_with_what_came_on_disk(tokenizer, tmp_path):
    with serving(complete(at_random), send(500, {"error": "out of memory"})) as (_, server):
        engine = Engine(server, tmp_path, tokenizer, concurrency=1)
        with pytest.raises(
            InputError, match=r"did not answer a prompt of step 1 \(.*\), asked once: 500 .*out of memory"
        ):
            engine.ask(0)
    assert len((tmp_path / "rollouts" / "step-1.jsonl").read_text().splitlines()) == 1


def test_the_teacher_writes_as_before_and_no_rule_does(tokenizer, tmp_path):
    with serving(complete(at_random)) as (_, server):
        writers = Engine(server, tmp_path, tokenizer).writers
    assert writers("teacher", SAMPLING) == ("teacher", SAMPLING)
    with pytest.raises(InputError, match="token by token"):
        writers(KeepShare(0.2), SAMPLING)


def test_settings_that_cannot_work_are_refused():
    good = EngineConfig("http://127.0.0.1:8000/v1", "{directory}")
    with pytest.raises(InputError, match="nothing tells the server"):
        replace(good, model="tiny", reload=("sh", "reload.sh"))
    with pytest.raises(InputError, match="engine.every must be at least 1"):
        replace(good, every=0)
    with pytest.raises(InputError, match="an address such as"):
        replace(good, url="localhost")
