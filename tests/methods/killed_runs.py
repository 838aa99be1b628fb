"""Every method, killed by the system while a model writes and while the student learns: `make kill-test`, ten minutes.

Its name keeps it out of the ordinary suite, which interrupts every method at both places within a process and kills
three of them. Here each run is a process of its own that dies of SIGKILL in the midst of the work, nothing closed and
no save waited for; and what resumes it, on the same device, has to repeat the uninterrupted run to the last digit.
"""

import signal
import subprocess
import sys

import pytest
from methods.test_writing import COUNTS, KILLED, METHODS, environment_of, read_rows, under
from runs import tiny_run

from selecttkd_jax.runs import save_config

# Whole runs, one after the other.
TRAIN = """
import sys
from selecttkd_jax.cli import main

for config in sys.argv[1:]:
    assert main(["--quiet", "train", config]) == 0, config
"""

# The call in whose midst a run dies. `epochs` writes an epoch's prompts at its start, 12 calls; others step by step.
PLACES = {"writing": "_write", "learning": "place_batch"}
CALLS = {(name, place): 5 for name in METHODS for place in PLACES}
CALLS |= {("rounds", "writing"): 3, ("epochs", "writing"): 13}


def run(code, *words):
    worker = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(worker, capture_output=True, text=True, env=environment_of(devices=1))


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """The rows of every run, by method and by where it was killed; None: nowhere."""
    root = tmp_path_factory.mktemp("runs")
    config = tiny_run.build(root)
    # Its student comes with a base model's settings, which stop it elsewhere than the teacher.
    (root / "student" / "generation_config.json").unlink()
    paths = {}
    for name in METHODS:
        for place in (None, *PLACES):
            output = root / f"{name}_{place}"
            save_config(under(config, name, output), output.with_suffix(".toml"))
            paths[name, place] = output
    for (name, place), call in CALLS.items():
        killed = run(KILLED, PLACES[place], call, paths[name, place].with_suffix(".toml"))
        assert killed.returncode == -signal.SIGKILL, f"{name} was not killed in {place}: {killed.stderr[-2000:]}"
        assert not (paths[name, place] / "student").exists(), f"{name} was over before it was killed in {place}"
    done = run(TRAIN, *(path.with_suffix(".toml") for path in paths.values()))
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        key: (read_rows(path / "metrics.jsonl"), (path / "student" / "model.safetensors").read_bytes())
        for key, path in paths.items()
    }


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_repeats_itself(numbers, name, place):
    (rows, weights), (expected_rows, expected_weights) = numbers[name, place], numbers[name, None]

    def compared(row):
        # What an epoch's file held already is not written, and so not counted, again.
        return {key: value for key, value in row.items() if name != "epochs" or not key.endswith(COUNTS)}

    assert [compared(row) for row in rows] == [compared(row) for row in expected_rows]
    assert weights == expected_weights
