"""Whole runs whose student's text a server writes: at random, as a real one does, killed and resumed."""

import os
import random
import socket
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from generation.scripted_server import complete, serving
from runs import tiny_run
from runs.tiny_run import with_output

from selecttkd_jax import data, models, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods import DistiLlm2, Gkd, Kd, MiniLlm, OnPolicyKd, SeqKd, SpeculativeKd
from selecttkd_jax.metrics import read_metrics
from selecttkd_jax.models import LoraConfig
from selecttkd_jax.progress import StepProgress
from selecttkd_jax.runs import LoggingConfig, save_config
from selecttkd_jax.runs._engine import warn_of_staleness
from selecttkd_jax.sharding import MeshConfig
from selecttkd_jax.sources import EngineConfig

pytestmark = [pytest.mark.usefixtures("lenient_promotion"), pytest.mark.one_stack]
SAMPLING = Sampling(max_new_tokens=8)
METHODS = {
    "on_policy": OnPolicyKd(sampling=SAMPLING),
    "rounds": Gkd(sampling=SAMPLING, rollout_steps=2),
    "epochs": DistiLlm2(sampling=SAMPLING, pairs="epoch"),
}
CLOCKS = ("seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = tiny_run.build(tmp_path_factory.mktemp("tiny"))
    (Path(config.models.student) / "generation_config.json").unlink()
    return replace(config, training=replace(config.training, steps=6), logging=LoggingConfig(samples_every=3))


def under(config, method, server, output, **changes):
    reload = ("sh", "-c", 'basename "$1" >> "$1/../../reloads"', "sh", "{directory}")
    engine = EngineConfig(server.url, "tiny", every=2, reload=reload, timeout=20.0, backoff=0.01)
    shared = ObjectiveConfig(verifier="spec_k", k=2, floor=0.05)
    return replace(with_output(config, output), method=method, objective=shared, **{"engine": engine, **changes})


def write(draw):
    words = draw.choices(tiny_run.WORDS, k=draw.randrange(4))
    return " ".join(words), draw.choice(["stop", "stop", "length"])


def at_random(body):
    del body
    return write(random.Random())


def by_seed(body):
    return write(random.Random(zlib.crc32(f"{body['prompt']} {body['seed']}".encode())))


def read_rows(path):
    return [{key: row[key] for key in row if not key.endswith(CLOCKS)} for row in read_metrics(path)]


@pytest.mark.parametrize("name", METHODS)
def test_a_run_killed_between_checkpoints_repeats_the_rows_that_it_wrote(config, name, tmp_path, monkeypatch):
    shown = StepProgress.__call__

    def interrupt(self, done, total, row):
        shown(self, done, total, row)
        if done == 5:
            raise KeyboardInterrupt

    with serving(complete(at_random)) as (script, server):
        mine = under(config, METHODS[name], server, tmp_path / "run")
        with monkeypatch.context() as patch:
            patch.setattr(StepProgress, "__call__", interrupt)
            with pytest.raises(KeyboardInterrupt):
                runs.train(mine)
        before, asked = read_rows(tmp_path / "run" / "metrics.jsonl"), len(script.requests)
        # The address is where, not what.
        moved = replace(mine, engine=replace(mine.engine, url=mine.engine.url.replace("127.0.0.1", "localhost")))
        resumed = runs.train(moved)
    rows = read_rows(resumed.metrics)
    assert len(before) == 6 and rows[:6] == before and len(rows) == 7
    ages = [row["rollouts/staleness"] for row in rows if "rollouts/staleness" in row]
    assert set(ages) == {"on_policy": {0, 1}, "epochs": {0}}.get(name, set(ages)) and ages
    # The answers to steps 4 and 5 were there.
    assert len(script.requests) - asked <= {"rounds": 8, "epochs": 0}.get(name, 4)


def test_a_run_stopped_while_a_server_writes_goes_on_with_what_came(config, tmp_path):
    answers = [0]

    def break_down(handler, body):
        answers[0] += 1
        if answers[0] == 19:  # the third answer of step 5
            handler.connection.close()
        else:
            complete(at_random)(handler, body)

    with serving(break_down) as (script, server):
        mine = under(config, METHODS["on_policy"], server, tmp_path / "run")
        with pytest.raises(InputError, match=r"did not answer a prompt of step 5 \("):
            runs.train(replace(mine, engine=replace(mine.engine, retries=0, concurrency=1)))
        before = read_rows(tmp_path / "run" / "metrics.jsonl")
        asked = len(script.requests)
        rows = read_rows(runs.train(mine).metrics)
    assert rows[: len(before)] == before and len(script.requests) - asked == 2 + 4


def test_what_is_handed_over_is_the_student_as_it_is_adapters_merged(config, tmp_path):
    """The last hand-over of a run that learns nothing is the student it began with."""
    still = replace(config.optimizer, learning_rate=1e-12)
    with serving(complete(by_seed)) as (_, server):
        mine = under(config, METHODS["on_policy"], server, tmp_path / "run", optimizer=still, lora=LoraConfig(rank=2))
        run = runs.train(mine)
    assert (run.directory / "reloads").read_text().split() == ["step-0", "step-2", "step-4"]
    handed = run.directory / "engine" / "step-4"
    before, after = models.from_pretrained(config.models.student), models.from_pretrained(handed)
    for ours, theirs in zip(*(map(float, _norms(one.params)) for one in (before, after)), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    stops = data.stop_ids(data.load_tokenizer(handed), handed)
    teacher = config.models.teacher
    assert stops == data.stop_ids(data.load_tokenizer(teacher), teacher)


def _norms(params):
    return [abs(leaf).sum() for leaf in jax.tree.leaves(params)]


def test_another_start_of_a_run_that_saved_nothing_does_not_read_its_text(config, tmp_path):
    rare = replace(config.training, steps=2, save_every=10)
    with serving(complete(at_random)) as (script, server):
        mine = under(config, METHODS["on_policy"], server, tmp_path / "run", training=rare)
        other = replace(mine, optimizer=replace(mine.optimizer, learning_rate=1e-3))
        for one, requests in ((mine, 4), (mine, 0), (other, 4)):
            asked = len(script.requests)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(StepProgress, "__call__", _stop)
                with pytest.raises(KeyboardInterrupt):
                    runs.train(one)
            assert len(script.requests) - asked == requests


def _stop(self, done, total, row):
    if done == 1:
        raise KeyboardInterrupt


@pytest.mark.parametrize("method", [SpeculativeKd(), MiniLlm(), SeqKd(), Kd()])
def test_an_engine_is_refused_where_the_student_does_not_write_alone(config, method):
    engine = EngineConfig("http://127.0.0.1:8000/v1", "{directory}")
    writes = "both models write together" if "student" in method.writes else "the student writes nothing"
    with pytest.raises(InputError, match=rf"\[engine\] .* {method.name} {writes}"):
        replace(config, method=method, objective=ObjectiveConfig(), engine=engine)


@pytest.mark.parametrize(
    ("method", "every", "warned"),
    [("on_policy", 3, True), ("on_policy", 2, False), ("rounds", 3, False), ("pairs", 3, True)],
)
def test_old_text_is_warned_of_under_a_reverse_divergence(config, method, every, warned, caplog):
    method = {**METHODS, "pairs": DistiLlm2(sampling=SAMPLING)}[method]
    engine = EngineConfig("http://127.0.0.1:8000/v1", "{directory}", every=every)
    warn_of_staleness(replace(config, method=method, objective=ObjectiveConfig(), engine=engine).resolved())
    assert ("up to 2 steps old" in caplog.text) == warned


# Two processes that know each other.
TOGETHER = """
import sys, jax
from selecttkd_jax import runs
from selecttkd_jax.runs import load_config

port, index, config = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(index))
runs.train(load_config(config))
"""


def test_two_processes_learn_from_what_the_first_is_answered(config, tmp_path):
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    with serving(complete(by_seed)) as (script, server):
        alone = runs.train(under(config, METHODS["rounds"], server, tmp_path / "alone"))
        asked = len(script.requests)
        save_config(
            under(config, METHODS["rounds"], server, tmp_path / "both", mesh=MeshConfig(fsdp=2)), tmp_path / "c.toml"
        )
        started = []
        for index in (0, 1):
            worker = [sys.executable, "-c", TOGETHER, str(port), str(index), str(tmp_path / "c.toml")]
            with (tmp_path / f"log_{index}").open("w") as log:
                started.append(subprocess.Popen(worker, stdout=log, stderr=subprocess.STDOUT, env=environment))
        codes = [process.wait(280) for process in started]
        assert codes == [0, 0], "\n".join((tmp_path / f"log_{index}").read_text()[-4000:] for index in (0, 1))
        assert len(script.requests) == 2 * asked
    for ours, theirs in zip(read_rows(tmp_path / "both" / "metrics.jsonl"), read_rows(alone.metrics), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6), theirs["step"]
