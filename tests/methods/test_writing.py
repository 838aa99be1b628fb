"""Methods for which a model writes: whole runs, killed and resumed, on one device and on meshes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import tiny_run
from runs.tiny_run import with_output

from selecttkd_jax import models, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.distill import ObjectiveConfig
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods import DistiLlm, DistiLlm2, Gkd, ImitKd, MiniLlm, OnPolicyKd, SeqKd, SpeculativeKd
from selecttkd_jax.metrics import read_metrics
from selecttkd_jax.progress import StepProgress
from selecttkd_jax.runs import LoggingConfig, save_config
from selecttkd_jax.sharding import MeshConfig
from selecttkd_jax.sources import _writer

pytestmark = [pytest.mark.usefixtures("lenient_promotion"), pytest.mark.one_stack]

SAMPLING = Sampling(temperature=1.0, max_new_tokens=8)
METHODS = {
    "gkd": Gkd(sampling=SAMPLING),
    "imitkd": ImitKd(sampling=SAMPLING, decay=20.0),
    "imitkd_hard": ImitKd(sampling=SAMPLING, decay=20.0, labels="hard"),
    "on_policy": OnPolicyKd(sampling=SAMPLING),
    "seqkd": SeqKd(sampling=SAMPLING, learn_from="logits"),
    "rounds": Gkd(sampling=SAMPLING, rollout_steps=3),
    "speculative_kd": SpeculativeKd(sampling=SAMPLING, keep_top_k=3, block=2),
    "minillm": MiniLlm(sampling=SAMPLING, rollouts=4, passes=2, pretraining=1.0),
    "distillm": DistiLlm(sampling=SAMPLING, threshold=0.8, capacity=8),
    "distillm2": DistiLlm2(sampling=SAMPLING, balance="released"),
    "epochs": DistiLlm2(sampling=SAMPLING, pairs="epoch", epochs=2),
    "adaptive": DistiLlm2(sampling=SAMPLING, adaptive_alpha="published", epochs=2),
}
COUNTS = ("rollouts/rows", "/length", "/cut", "/distinct_1", "/distinct_2", "/distinct_4")
CLOCKS = {"step_seconds", "tokens_per_second", "learning_seconds"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = tiny_run.build(tmp_path_factory.mktemp("tiny"))
    # Its student comes with a base model's settings, which stop it elsewhere than the teacher.
    (Path(config.models.student) / "generation_config.json").unlink()
    return config


def under(config, name, output, **changes):
    """The tiny run under a method, with its own divergence."""
    shared = ObjectiveConfig(verifier="spec_k", k=2, floor=0.05)
    often = LoggingConfig(samples_every=3)
    return replace(with_output(config, output), method=METHODS[name], objective=shared, logging=often, **changes)


def read_rows(path):
    def is_clock(key):
        return key in CLOCKS or key.endswith(("rollouts/seconds", "rollouts/tokens_per_second"))

    return [{key: value for key, value in row.items() if not is_clock(key)} for row in read_metrics(path)]


def rows_of(run):
    return read_rows(run.metrics)


def assert_repeated(resumed, whole, name):
    """Every number equal; but what an epoch's file held already is not written, and so not counted, again."""

    def compared(run):
        if name != "epochs":
            return rows_of(run)
        return [{key: value for key, value in row.items() if not key.endswith(COUNTS)} for row in rows_of(run)]

    assert compared(resumed) == compared(whole)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """An uninterrupted run of each method."""
    with jax.numpy_dtype_promotion("standard"):
        directory = tmp_path_factory.mktemp("whole")
        return {name: runs.train(under(config, name, directory / name)) for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_a_student_learns(whole, name):
    # Labels pull towards the data as much as towards a teacher of random weights, who disagrees with them.
    measure = "cross_entropy" if name == "imitkd_hard" else "kl"
    assert whole[name].after[measure] < whole[name].before[measure]


@pytest.mark.parametrize("name", METHODS)
def test_a_run_stopped_twice_writes_the_same_text_and_takes_the_same_steps(whole, config, name, tmp_path, monkeypatch):
    """Stopped while a model writes for the fourth time, and between two checkpoints."""
    write, shown, calls = _writer._write, StepProgress.__call__, 0
    ahead = {"in the fourth text", "after step 5"}

    def stop(where):
        if where in ahead:
            ahead.remove(where)
            raise KeyboardInterrupt

    def stop_in_a_text(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 4:
            stop("in the fourth text")
        return write(*arguments, **options)

    def stop_after_a_step(self, done, total, row):
        shown(self, done, total, row)
        if done == 5:
            stop("after step 5")

    with monkeypatch.context() as patch:
        patch.setattr(_writer, "_write", stop_in_a_text)
        patch.setattr(StepProgress, "__call__", stop_after_a_step)
        for _ in range(3):
            with contextlib.suppress(KeyboardInterrupt):
                resumed = runs.train(under(config, name, tmp_path / "run"))
                break
    assert "after step 5" not in ahead and calls >= 3
    assert_repeated(resumed, whole[name], name)
    ours, theirs = (Path(run.directory / "samples.jsonl").read_text() for run in (resumed, whole[name]))
    assert ours == theirs and ours.count("\n") >= 3
    ours, theirs = models.from_pretrained(resumed.student), models.from_pretrained(whole[name].student)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


MESHES = {"data": MeshConfig(data=2), "fsdp": MeshConfig(fsdp=2), "tensor": MeshConfig(data=2, tensor=2)}


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("gkd", "data"),
        ("distillm", "fsdp"),
        ("distillm2", "tensor"),
        ("distillm2", "fsdp"),
        ("rounds", "data"),
        ("speculative_kd", "tensor"),
        ("minillm", "fsdp"),
        ("epochs", "tensor"),
        ("adaptive", "fsdp"),
        ("on_policy", "data"),
        ("on_policy", "fsdp"),
        ("imitkd", "data"),
        ("imitkd_hard", "fsdp"),
        ("seqkd", "data"),
        ("seqkd", "fsdp"),
    ],
)
def test_a_mesh_writes_and_learns_as_one_device_does(whole, config, name, mesh, tmp_path):
    found = runs.train(under(config, name, tmp_path / "run", mesh=MESHES[mesh]))
    for ours, theirs in zip(rows_of(found), rows_of(whole[name]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6), theirs["step"]


@pytest.mark.parametrize("name", METHODS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(config, name, tmp_path):
    """Through the whole method, decode included: every divergence 0 and every token accepted."""
    same = replace(config.models, student=config.models.teacher)
    frozen = replace(config.optimizer, learning_rate=1e-12)
    loop = replace(config.training, steps=3)
    found = runs.train(under(config, name, tmp_path / "run", models=same, optimizer=frozen, training=loop))
    for row in rows_of(found)[1:]:
        assert row["tar"] == pytest.approx(1.0, abs=1e-5)
        # The cross-entropy on labels is no divergence: two equal models are not sure of them.
        assert abs(row["divergence"]) < 1e-6 or name == "imitkd_hard"


def test_a_student_that_stops_elsewhere_than_its_teacher_is_refused(tmp_path):
    config = tiny_run.build(tmp_path)
    with pytest.raises(InputError, match=r"it stops at the ids \(0, 2\), the teacher at \(2,\)"):
        runs.train(under(config, "gkd", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_what_leaves_no_room_for_a_prompt_is_refused(config, tmp_path):
    method = Gkd(sampling=Sampling(max_new_tokens=48))
    with pytest.raises(InputError, match="max_new_tokens = 48 leaves no room for a prompt in data.max_length = 48"):
        runs.train(replace(with_output(config, tmp_path / "run"), method=method, objective=ObjectiveConfig()))
    assert not (tmp_path / "run").exists()


# Is killed within some call, as the machine would do it: nothing is closed, no save is waited for. The signal comes
# from another thread, a moment after the call began.
KILLED = """
import os, signal, sys, threading
from selecttkd_jax.cli import main
from selecttkd_jax.runs import _train
from selecttkd_jax.sources import _writer

where, last, config = sys.argv[1:]
room = _writer if where == "_write" else _train
function, calls = getattr(room, where), 0

def counting(*arguments, **options):
    global calls
    calls += 1
    if calls == int(last):
        threading.Timer(0.002, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return function(*arguments, **options)

setattr(room, where, counting)
main(["train", config])
"""


@pytest.mark.parametrize(
    ("name", "where", "last"), [("rounds", "_write", 3), ("distillm", "place_batch", 7), ("epochs", "_write", 14)]
)
def test_a_killed_process_leaves_what_a_run_resumes_from(whole, config, name, where, last, tmp_path):
    save_config(under(config, name, tmp_path / "run"), tmp_path / "config.toml")
    worker = [sys.executable, "-c", KILLED, where, str(last), str(tmp_path / "config.toml")]
    killed = subprocess.run(worker, capture_output=True, text=True, timeout=300, env=environment_of(devices=1))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = runs.train(under(config, name, tmp_path / "run"))
    for ours, theirs in zip(rows_of(resumed), rows_of(whole[name]), strict=True):
        compared = [key for key in theirs if name != "epochs" or not key.endswith(COUNTS)]
        assert {key: ours[key] for key in compared} == pytest.approx(
            {key: theirs[key] for key in compared}, rel=1e-5, abs=1e-6
        ), theirs["step"]


# One after the other in two processes that know each other.
TOGETHER = """
import sys, jax
from selecttkd_jax import runs
from selecttkd_jax.runs import load_config

port, index, *configs = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(index))
for config in configs:
    runs.train(load_config(config))
"""


def environment_of(devices):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def test_two_processes_write_and_learn_as_one_device_does(whole, config, tmp_path):
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    configs = []
    for name in METHODS:
        configs.append(str(tmp_path / f"{name}.toml"))
        save_config(under(config, name, tmp_path / name, mesh=MeshConfig(fsdp=2)), Path(configs[-1]))
    started = []
    for index in (0, 1):
        worker = [sys.executable, "-c", TOGETHER, str(port), str(index), *configs]
        with (tmp_path / f"log_{index}").open("w") as log:
            started.append(
                subprocess.Popen(worker, stdout=log, stderr=subprocess.STDOUT, env=environment_of(devices=1))
            )
    codes = [process.wait(500) for process in started]
    assert codes == [0, 0], "\n".join((tmp_path / f"log_{index}").read_text()[-4000:] for index in (0, 1))
    for name in METHODS:
        for ours, theirs in zip(read_rows(tmp_path / name / "metrics.jsonl"), rows_of(whole[name]), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6), (name, theirs["step"])
