"""Two real processes, four devices each, through the command line: the numbers of one process, and what becomes of one
that is left alone. Who is who comes from the flags, or from the variables that launchers leave."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from runs.tiny_run import with_output
from safetensors.numpy import load_file, save_file

from selecttkd_jax import models, runs
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods import OnPolicyKd
from selecttkd_jax.metrics import read_metrics
from selecttkd_jax.runs import LoggingConfig, save_config
from selecttkd_jax.sharding import MeshConfig

pytestmark = pytest.mark.usefixtures("lenient_promotion")

# Runs the command; notes how many numbers of weights it read, and which GPUs JAX was to take; falls silent before some
# batch, like a host that hangs.
WORKER = """
import os, signal, sys
from pathlib import Path
from jax._src import config
from selecttkd_jax.cli import main
from selecttkd_jax.runs import _evaluators, _train
from selecttkd_jax.models.files._shards import Stored

silent_at, report, *words = sys.argv[1:]
read, placed, visible = 0, 0, "all"
update = config.update

def updating(name, value):
    global visible
    visible = value if name == "jax_cuda_visible_devices" else visible
    update(name, value)

config.update = updating
read_stored, place_batch = Stored.read, _train.place_batch

def counting(self, part=None):
    global read
    found = read_stored(self, part)
    read += found.size
    return found

def placing(mesh, batch, rows):
    global placed
    placed += 1
    Path(report + "_devices").write_text(visible)
    if placed == int(silent_at):
        os.kill(os.getpid(), signal.SIGSTOP)
    return place_batch(mesh, batch, rows)

Stored.read, _train.place_batch, _evaluators.place_batch = counting, placing, placing
code = main(words)
Path(report).write_text(str(read))
sys.exit(code)
"""
TIMEOUT = 300


@pytest.fixture(scope="module")
def sixteen(config):
    """The tiny run with rows for eight devices. Its vocabulary and its one key head divide over nothing."""
    return replace(
        config,
        data=replace(config.data, batch_size=16, held_out_rows=5),
        training=replace(config.training, keep_checkpoints=3),
    )


@pytest.fixture(scope="module")
def alone(sixteen, tmp_path_factory):
    """One process, one device."""
    with jax.numpy_dtype_promotion("standard"):
        return runs.train(with_output(sixteen, tmp_path_factory.mktemp("alone") / "run"))


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def by_flags(index, port):
    """`--coordinator` and the rest, where srun started one process a node."""
    flags = ["--coordinator", f"localhost:{port}", "--num-processes", "2", "--process-id", str(index)]
    return flags, slurm(index)


def by_torchrun(index, port):
    """torchrun, two processes a machine, started by srun."""
    said = {"WORLD_SIZE": 2, "RANK": index, "LOCAL_RANK": index, "LOCAL_WORLD_SIZE": 2}
    return [], slurm(0) | said | {"MASTER_ADDR": "localhost", "MASTER_PORT": port - 1}


def by_open_mpi(index, port):
    """Open MPI 5, which tells JAX no coordinator."""
    said = {"SIZE": 2, "RANK": index, "LOCAL_RANK": index, "LOCAL_SIZE": 2}
    return ["--coordinator", f"localhost:{port}"], {f"OMPI_COMM_WORLD_{name}": value for name, value in said.items()}


def slurm(index):
    said = {"JOB_ID": 7, "NTASKS": 2, "PROCID": index, "LOCALID": 0, "STEP_NODELIST": "n[1-2]", "STEP_NUM_NODES": 2}
    return {f"SLURM_{name}": value for name, value in said.items()}


def start_both(directory, config, words=((), ()), silent_at=(0, 0), launcher=by_flags, directories=(None, None)):
    """Starts `selecttkd train` twice, as a user would on two hosts."""
    directory.mkdir(exist_ok=True)
    save_config(config, directory / "config.toml")
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    port = free_port()
    started = []
    for index in (0, 1):
        hosts, variables = launcher(index, port)
        worker = [sys.executable, "-c", WORKER, str(silent_at[index]), str(directory / f"read_{index}")]
        command = [*worker, "train", str(directory / "config.toml"), *hosts, *words[index]]
        own = environment | {name: str(value) for name, value in variables.items()}
        with (directory / f"log_{index}").open("w") as log:
            started.append(
                subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=own, cwd=directories[index])
            )
    return started


def assert_same_rows(rows, expected):
    """Every loss and every held-out number, to the rounding of another order of additions."""
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        numbers = {name: value for name, value in other.items() if name not in ("step_seconds", "tokens_per_second")}
        assert {name: row[name] for name in numbers} == pytest.approx(numbers, rel=1e-5, abs=1e-7), row["step"]


def test_two_processes_continue_what_one_began(sixteen, alone, tmp_path):
    """From the third step's checkpoint of one device to eight devices of two processes, to the same end."""
    run = tmp_path / "run"
    shutil.copytree(alone.directory, run)
    for name in ("checkpoints/step_6", "checkpoints/step_8", "student", "plots"):
        shutil.rmtree(run / name)
    mesh = MeshConfig(fsdp=4, tensor=2)
    both = start_both(tmp_path / "start", replace(with_output(sixteen, run), mesh=mesh), launcher=by_torchrun)
    codes = [process.wait(TIMEOUT) for process in both]
    logs = [(tmp_path / "start" / f"log_{index}").read_text() for index in (0, 1)]
    assert codes == [0, 0], "\n".join(logs)
    assert "resuming from step 3" in logs[0] and "V = " in logs[0] and "held-out KL" in logs[0]
    assert "step" not in logs[1] and "held-out" not in logs[1]  # the second process says nothing

    expected = read_metrics(alone.metrics)
    assert_same_rows(read_metrics(run / "metrics.jsonl"), expected)
    exported, student = load_file(run / "student" / "model.safetensors"), load_file(alone.student / "model.safetensors")
    assert exported.keys() == student.keys()
    for name, tensor in student.items():
        np.testing.assert_allclose(exported[name], tensor, rtol=1e-3, atol=1e-5, err_msg=name)
    assert sorted(path.name for path in (run / "checkpoints").glob("step_*")) == ["step_3", "step_6", "step_8"]
    assert len(list((run / "tensorboard").iterdir())) == 2  # of the first process's two starts

    # Each process has half of what is sharded over fsdp; norms and biases are whole everywhere.
    total = sum(
        models.count_params(models.read_config(name)[0]) for name in (sixteen.models.teacher, sixteen.models.student)
    )
    for index in (0, 1):
        assert (tmp_path / "start" / f"read_{index}_devices").read_text() == str(index)
        assert 0.5 * total <= int((tmp_path / "start" / f"read_{index}").read_text()) < 0.55 * total


def test_a_host_that_falls_silent_stops_the_other_and_one_process_takes_over(sixteen, alone, tmp_path):
    run = tmp_path / "run"
    config = replace(with_output(sixteen, run), mesh=MeshConfig(data=2, fsdp=4, host_timeout=5))
    # Three held-out batches before the first step and after the fourth, one a step: before the seventh step.
    first, second = start_both(tmp_path / "start", config, silent_at=(0, 2 + 7))
    try:
        began = time.monotonic()
        while not _is_stopped(second.pid):
            assert first.poll() is None and time.monotonic() < began + TIMEOUT, (tmp_path / "start/log_0").read_text()
            time.sleep(0.1)
        stopped = time.monotonic()
        assert first.wait(TIMEOUT) != 0
        # Twice the timeout: the coordinator has to miss the silent one, then tell the other.
        assert time.monotonic() - stopped < 2 * 5 + 10
    finally:
        for process in (first, second):
            process.send_signal(signal.SIGKILL)
            process.wait(TIMEOUT)
    assert (tmp_path / "start" / "read_0_devices").read_text() == "all"
    line = "selecttkd: error: process 1 of this run is silent for 4 s (mesh.host_timeout), and this one stops"
    assert line in (tmp_path / "start" / "log_0").read_text()

    finished = runs.train(replace(config, mesh=MeshConfig(fsdp=2, tensor=2, data=2)))
    assert_same_rows(read_metrics(finished.metrics), read_metrics(alone.metrics))


def test_a_signal_to_one_process_ends_both_after_one_step_which_is_saved(sixteen, tmp_path):
    run = tmp_path / "run"
    longer = replace(sixteen.training, steps=10**6, eval_every=10**6, save_every=10**6)
    config = replace(with_output(sixteen, run), training=longer, mesh=MeshConfig(data=2, fsdp=4))
    both = start_both(tmp_path / "start", config)
    began = time.monotonic()
    while not (run / "metrics.jsonl").is_file() or len(read_metrics(run / "metrics.jsonl")) < 3:
        assert [process.poll() for process in both] == [None, None] and time.monotonic() < began + TIMEOUT
        time.sleep(0.1)
    both[1].send_signal(signal.SIGINT)
    codes = [process.wait(TIMEOUT) for process in both]
    logs = [(tmp_path / "start" / f"log_{index}").read_text() for index in (0, 1)]
    assert codes == [143, 130], "\n".join(logs)  # the first one was told by JAX, which knows SIGTERM alone
    (saved,) = (run / "checkpoints").glob("step_*")
    step = int(saved.name.removeprefix("step_"))
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == list(range(step + 1))
    assert f"ended by SIGTERM: step {step} is saved" in logs[0] and f"ended by SIGINT: step {step} is saved" in logs[1]
    assert all("selecttkd: to go on: selecttkd train " in log for log in logs)


@pytest.mark.one_stack
def test_text_that_two_processes_write_is_that_of_one(sixteen, tmp_path):
    """Each writes its rows; what is said of the text is said of all of it."""
    student = tmp_path / "student"
    shutil.copytree(sixteen.models.student, student)
    (student / "generation_config.json").unlink()  # a base model's, which stops it elsewhere than the teacher
    config = replace(
        sixteen,
        models=replace(sixteen.models, student=str(student)),
        method=OnPolicyKd(sampling=Sampling(max_new_tokens=8)),
        objective=replace(sixteen.objective, divergence=None),
        training=replace(sixteen.training, steps=2),
        logging=LoggingConfig(samples_every=1),
    )
    one = runs.train(with_output(config, tmp_path / "one"))
    both = start_both(
        tmp_path / "start", replace(with_output(config, tmp_path / "two"), mesh=MeshConfig(data=2, fsdp=4))
    )
    codes = [process.wait(TIMEOUT) for process in both]
    assert codes == [0, 0], "\n".join((tmp_path / "start" / f"log_{index}").read_text() for index in (0, 1))
    clocks = {"learning_seconds", "rollouts/seconds", "rollouts/tokens_per_second"}
    rows = [{name: value for name, value in row.items() if name not in clocks} for row in read_metrics(one.metrics)]
    assert "rollouts/tar_from_0" in rows[1] and rows[1]["rollouts/rows"] == 16
    assert_same_rows(read_metrics(tmp_path / "two" / "metrics.jsonl"), rows)
    texts = [
        [(found["step"], found["prompt"], found["response"]) for found in map(json.loads, lines)]
        for lines in ((tmp_path / name / "samples.jsonl").read_text().split("\n")[:-1] for name in ("one", "two"))
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 6


def _is_stopped(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "T"
    except FileNotFoundError:
        return False


def test_a_mistake_on_one_host_is_said_there_and_stops_the_other(sixteen, tmp_path):
    config = replace(with_output(sixteen, tmp_path / "run"), mesh=MeshConfig(fsdp=-1, host_timeout=5))
    both = start_both(tmp_path / "start", config, words=((), ("--data.train", "nowhere.jsonl")))
    began = time.monotonic()
    codes = [process.wait(TIMEOUT) for process in reversed(both)]
    assert codes[0] == 2 and codes[1] != 0
    assert time.monotonic() - began < TIMEOUT / 2
    assert "selecttkd: error: " in (tmp_path / "start" / "log_1").read_text()
    assert not (tmp_path / "run").exists()


def test_hosts_that_were_asked_for_different_things_are_refused(sixteen, alone, tmp_path):
    """Another seed, fewer rows and no checkpoint on the second host: said at once, and nothing is changed."""
    config = replace(with_output(sixteen, alone.directory), mesh=MeshConfig(fsdp=-1, host_timeout=5))
    metrics = alone.metrics.read_bytes()
    few = tmp_path / "few.jsonl"
    few.write_text("".join(Path(sixteen.data.train).read_text().splitlines(keepends=True)[:20]))
    words = ["--seed", "1", "--data.train", str(few), "--output", str(tmp_path / "other")]
    both = start_both(tmp_path / "start", config, words=((), words), launcher=by_open_mpi)
    codes = [process.wait(TIMEOUT) for process in both]
    logs = [(tmp_path / "start" / f"log_{index}").read_text() for index in (0, 1)]
    assert 2 in codes and 0 not in codes, "\n".join(logs)
    # Both say it, but the slower one may be stopped by the other's end.
    line = next(line for line in "".join(logs).splitlines() if "error: the hosts do not agree" in line)
    told = ["seed in", "data in", "output in", "the training rows", "the checkpoint (step "]
    assert all(what in line for what in told) and "objective" not in line
    assert alone.metrics.read_bytes() == metrics and not (tmp_path / "other").exists()


def test_hosts_with_other_weights_under_one_path_are_refused(sixteen, tmp_path):
    """Each host has a disk of its own; a teacher trained further, and other held-out rows, are on the second one's."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        shutil.copytree(sixteen.models.teacher, tmp_path / name / "teacher")
        shutil.copy(sixteen.data.train, tmp_path / name / "held_out.jsonl")
    path = tmp_path / "second/teacher/model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor * np.float32(1.01) for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    lines = (tmp_path / "second/held_out.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "second/held_out.jsonl").write_text("".join(lines[1:]))
    config = replace(
        with_output(sixteen, tmp_path / "run"),
        models=replace(sixteen.models, teacher="teacher"),
        data=replace(sixteen.data, held_out="held_out.jsonl"),
        mesh=MeshConfig(fsdp=-1, host_timeout=5),
    )
    both = start_both(tmp_path / "start", config, directories=(tmp_path / "first", tmp_path / "second"))
    codes = [process.wait(TIMEOUT) for process in both]
    logs = [(tmp_path / "start" / f"log_{index}").read_text() for index in (0, 1)]
    assert 2 in codes and 0 not in codes, "\n".join(logs)
    line = next(line for line in "".join(logs).splitlines() if "error: the hosts do not agree" in line)
    assert "the teacher's weights (process 1)" in line and "the held-out rows (process 1)" in line
    assert "student" not in line and "training rows" not in line and not (tmp_path / "run").exists()
