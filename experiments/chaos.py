"""Runs that are killed, told to end, and out of disk, at random moments: `make chaos`, and what became of each.

    python experiments/chaos.py --kills 200 --seed 0          (make chaos)

Every trial is a process of its own, of a tiny model, on the CPU. A kill lands at a random moment of a run (loading,
writing, evaluating, learning, saving, exporting), and the same command resumes it, until one of them ends; what it ends
with has to be, to the last digit, what the run without a kill ends with: every row, the student's bytes, no litter. A
signal has to leave a checkpoint of the step it says; a full disk one line, and a run that goes on once there is room.

Prints a table and writes it as CSV; exits with 1 at the first thing that is not as it should be, and says what.
"""

import argparse
import csv
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

CLOCKS = ("step_seconds", "tokens_per_second", "learning_seconds", "rollouts/seconds")
TIMEOUT = 300.0
LITTER = (".unfinished", ".replaced", ".tmp", "orbax-checkpoint-tmp")


@dataclass(frozen=True)
class Outcome:
    """What became of one process.

    Attributes:
        code: Its exit code; negative for the signal that ended it.
        log: What it printed.
        seconds: From the signal to the end.
        steps: Rows that were there when it was signalled.
    """

    code: int
    log: str
    seconds: float
    steps: int


def work(config: str, log: str, most_bytes: int | None) -> None:
    """A `selecttkd train` in a process that has imported it already."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    if most_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    from selecttkd_jax.cli import main

    code = main(["train", config])
    sys.stdout.flush()
    # As a process of its own would end, threads and all.
    sys.exit(code)


class Trials:
    """Runs of one configuration.

    Args:
        root: Where everything is.
        seed: Of the moments.
    """

    def __init__(self, root: Path, seed: int):
        self.root = root
        self.random = random.Random(seed)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["selecttkd_jax.runs", "selecttkd_jax.cli._train", "transformers"])

    def start(self, config: Any, *, most_bytes: int | None = None) -> tuple[Any, Path]:
        """A process that trains; its log is beside the run."""
        from selecttkd_jax.runs import save_config

        path = Path(config.output).with_suffix(".toml")
        save_config(config, path)
        log = path.with_suffix(".log")
        process = self._context.Process(target=work, args=(str(path), str(log), most_bytes))
        process.start()
        return process, log

    def run(self, config: Any, signum: int | None = None, after: float = 0.0, **limits: Any) -> Outcome:
        """One process, signalled after so many seconds if it still lives."""
        process, log = self.start(config, **limits)
        if signum is not None:
            process.join(after)
            with suppress(ProcessLookupError):
                os.kill(process.pid, signum)
        steps, began = len(read_rows(Path(config.output))), time.monotonic()
        process.join(TIMEOUT)
        if process.is_alive():
            process.kill()
            process.join()
            raise Fault(f"hangs for {TIMEOUT:.0f} s: {tail(log)}")
        return Outcome(process.exitcode, log.read_text(), time.monotonic() - began, steps)


class Fault(Exception):
    """Something that is not as it should be."""


def read_rows(run: Path) -> list[dict[str, float]]:
    """The rows of a run without its clocks."""
    from selecttkd_jax.metrics import read_metrics

    path = run / "metrics.jsonl"
    rows = read_metrics(path) if path.is_file() else []
    return [{name: value for name, value in row.items() if not name.endswith(CLOCKS)} for row in rows]


def tail(log: Path) -> str:
    """The end of a log."""
    return log.read_text()[-1500:]


def check_end(run: Path, whole: Path) -> None:
    """Compares a finished run with the one that nothing happened to."""
    if read_rows(run) != read_rows(whole):
        raise Fault("the rows differ")
    for name in ("student/model.safetensors", "student/config.json"):
        if (run / name).read_bytes() != (whole / name).read_bytes():
            raise Fault(f"{name} differs")
    with (run / "metrics.csv").open() as one, (whole / "metrics.csv").open() as other:
        if len(list(csv.reader(one))) != len(list(csv.reader(other))):
            raise Fault("metrics.csv has other rows")
    left = [str(path.relative_to(run)) for path in run.rglob("*") if any(mark in path.name for mark in LITTER)]
    if left:
        raise Fault(f"litter: {', '.join(left)}")


def check_log(log: str) -> None:
    """Raises Fault for a traceback."""
    if "Traceback" in log:
        raise Fault(f"a traceback: {log[-1500:]}")


def killed(trials: Trials, config: Any, whole: Path, longest: float, number: int) -> tuple[int, str]:
    """Kills a run again and again until one of its processes ends by itself; how often, and where."""
    run = trials.root / f"killed_{number}"
    kills, places = 0, []
    while True:
        # Most moments are early: a run that resumes has less to do each time.
        after = trials.random.uniform(0.0, longest)
        outcome = trials.run(replace(config, output=str(run)), signal.SIGKILL, after)
        check_log(outcome.log)
        if outcome.code == 0:
            break
        if outcome.code != -signal.SIGKILL:
            raise Fault(f"exit code {outcome.code}: {outcome.log[-1500:]}")
        kills += 1
        places.append(str(outcome.steps))
    check_end(run, whole)
    shutil.rmtree(run)
    return kills, f"at rows {' '.join(places) or '-'}"


def told(trials: Trials, config: Any, whole: Path, longest: float, number: int) -> tuple[int, str]:
    """SIGTERM or SIGINT at a random moment: the exit code, the step that is said is saved, the same end."""
    run, signum = trials.root / f"told_{number}", trials.random.choice((signal.SIGTERM, signal.SIGINT))
    outcome = trials.run(replace(config, output=str(run)), signum, trials.random.uniform(0.2, 0.8) * longest)
    check_log(outcome.log)
    said = f"rows {outcome.steps}, {signal.Signals(signum).name}: {outcome.code}"
    if outcome.code == 128 + signum:
        if "to go on: selecttkd train" not in outcome.log:
            raise Fault(f"no line that resumes: {outcome.log[-1500:]}")
        from selecttkd_jax.training import latest_step

        saved = latest_step(run / "checkpoints")
        if (found := re.search(r"step (\d+) is saved", outcome.log)) and int(found[1]) != saved:
            raise Fault(f"says step {found[1]}, and {saved} is saved")
        if saved is not None and len(read_rows(run)) != saved + 1 and found:
            raise Fault(f"step {saved} is saved, and there are {len(read_rows(run))} rows")
        said += f", {found[0] if found else 'before the first step'}"
    elif outcome.code == -signum and outcome.steps == 0:
        said += ", before the program was there"
    elif outcome.code != 0:
        raise Fault(f"exit code {outcome.code}: {outcome.log[-1500:]}")
    finished = trials.run(replace(config, output=str(run)))
    if finished.code != 0:
        raise Fault(f"does not resume: {finished.log[-1500:]}")
    check_end(run, whole)
    shutil.rmtree(run)
    return 1, said


def full(trials: Trials, config: Any, whole: Path, longest: float, number: int) -> tuple[int, str]:
    """No file may be larger than a random number of bytes, as on a full disk; then it may."""
    del longest
    # No less than the log takes, which is a file, too.
    run, most = trials.root / f"full_{number}", int(2 ** trials.random.uniform(14, 17))
    outcome = trials.run(replace(config, output=str(run)), most_bytes=most)
    check_log(outcome.log)
    lines = [line for line in outcome.log.splitlines() if line.startswith("selecttkd: error: ")]
    if outcome.code not in (0, 2) or (outcome.code == 2) != (len(lines) == 1):
        raise Fault(f"exit code {outcome.code} and {len(lines)} lines: {outcome.log[-1500:]}")
    finished = trials.run(replace(config, output=str(run)))
    if finished.code != 0:
        raise Fault(f"does not resume: {finished.log[-1500:]}")
    check_end(run, whole)
    shutil.rmtree(run)
    return 1, f"{most} bytes a file: {lines[0].removeprefix('selecttkd: error: ') if lines else 'no matter'}"


KINDS: dict[str, Callable[..., tuple[int, str]]] = {"killed": killed, "told": told, "full": full}


def configurations(root: Path) -> dict[str, Any]:
    """What is tried: a run of stored text, and one whose student writes."""
    import jax
    from runs import tiny_run

    from selecttkd_jax.generation import Sampling
    from selecttkd_jax.methods import Gkd

    with jax.numpy_dtype_promotion("standard"):
        config = tiny_run.build(root)
    # Its student comes with a base model's settings, which stop it elsewhere than the teacher.
    (root / "student" / "generation_config.json").unlink()
    training = replace(config.training, steps=60, eval_every=20, save_every=7, compilation_cache=str(root / "programs"))
    stored = replace(config, training=training)
    few = replace(training, steps=24, eval_every=8, save_every=5)
    objective = replace(config.objective, divergence=None)
    writing = replace(stored, training=few, method=Gkd(sampling=Sampling(max_new_tokens=8)), objective=objective)
    return {"kd": stored, "gkd": writing}


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes what was tried so far, under the command that tried it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.write(f"# python experiments/chaos.py {' '.join(sys.argv[1:])}\n")
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def main() -> int:
    """Tries, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs at least, over both configurations")
    parser.add_argument("--signals", type=int, default=20, help="runs that are told to end")
    parser.add_argument("--full", type=int, default=10, help="runs on a full disk")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--table", type=Path, default=ROOT / "experiments/results/chaos.csv", help="where it goes")
    options = parser.parse_args()
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="chaos_") as folder:
        root = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        trials = Trials(root, options.seed)
        made = configurations(root)
        wholes, longest = {}, {}
        for name, config in made.items():
            for again in ("compiling", "whole"):
                wholes[name] = root / f"{name}_{again}"
                began = time.monotonic()
                outcome = trials.run(replace(config, output=str(wholes[name])))
                longest[name] = time.monotonic() - began
                if outcome.code != 0:
                    print(f"exit code {outcome.code}: {outcome.log}")
                    return 1
        wanted = {"killed": options.kills, "told": options.signals, "full": options.full}
        for kind, count in wanted.items():
            done = number = 0
            while done < count:
                name = ("kd", "gkd")[number % 2]
                row = {"kind": kind, "method": name, "number": number}
                try:
                    tried, said = KINDS[kind](trials, made[name], wholes[name], longest[name], number)
                    row |= {"tried": tried, "as it should be": "yes", "what": said}
                except Fault as fault:
                    row |= {"tried": 1, "as it should be": "NO", "what": str(fault)}
                rows.append(row)
                print(json.dumps(row), flush=True)
                write_table(options.table, rows)
                if row["as it should be"] == "NO":
                    break
                # A run that was never hit counts as one, so that this ends.
                done += max(row["tried"], 1)
                number += 1
    bad = [row for row in rows if row["as it should be"] == "NO"]
    for kind in wanted:
        print(f"{kind}: {sum(row['tried'] for row in rows if row['kind'] == kind)} tried")
    print(f"{len(bad)} faults")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
