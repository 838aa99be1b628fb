"""Time the core: value and gradient of each divergence alone, then with each verifier, in one run.

    make bench-core                                   (or: python experiments/bench_core.py --repeats 11)

Writes experiments/results/core_<date>_<commit>.csv with the machine, the versions and the commit in every row. The
variants of one divergence take turns, so that a noisy neighbour meets them all; overheads compare medians, of wall
time and of processor time (which other programs disturb less).

Hardware and time: any; about four minutes on two CPU cores. What to expect there: with chunks in the cache a
divergence and its gradient take well under half the time of the whole arrays.
"""

import argparse
import csv
import datetime
import os
import platform
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from selecttkd_jax import distill, losses, selection

SHAPES = [(1024, 49_152), (256, 151_936)]
DIVERGENCES = {
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "skew_kl": partial(losses.skew_kl, alpha=0.1),
    "skew_reverse_kl": partial(losses.skew_reverse_kl, alpha=0.1),
    "jensen_shannon": losses.jensen_shannon,
    "total_variation": losses.total_variation,
    "hellinger": losses.hellinger,
    "adaptive_kl": losses.adaptive_kl,
}
VERIFIERS = {
    "accept_all": selection.accept_all,
    "greedy_top_k": partial(selection.greedy_top_k, k=5),
    "spec_k": partial(selection.spec_k, k=5),
}
RESULTS = Path(__file__).parent / "results"


def main():
    """Times everything and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--chunk-sizes", type=int, nargs="*", default=[0, 8], help="rows at a time; 0 means all")
    parser.add_argument("--divergences", nargs="*", default=list(DIVERGENCES), choices=list(DIVERGENCES))
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()

    facts = describe()
    rows = [{"what": "import selecttkd_jax.losses after jax", "median_s": round(import_seconds(), 4), **facts}]
    print(f"{rows[0]['what']}: {rows[0]['median_s']} s", flush=True)
    for positions, vocabulary in SHAPES:
        batch = make_batch(positions, vocabulary)
        for chunk_size in options.chunk_sizes:
            for name in options.divergences:
                seconds = time_variants(name, chunk_size or None, batch, options.repeats)
                base_wall, base_cpu = (median(column) for column in zip(*seconds["accept_all"], strict=True))
                for verifier, times in seconds.items():
                    wall, cpu = zip(*times, strict=True)
                    row = {
                        "what": "value and gradient",
                        "positions": positions,
                        "vocabulary": vocabulary,
                        "chunk_size": chunk_size,
                        "divergence": name,
                        "verifier": verifier,
                        "median_s": round(median(wall), 4),
                        "least_s": round(min(wall), 4),
                        "cpu_s": round(median(cpu), 4),
                        "overhead_percent": round(100 * (median(wall) / base_wall - 1), 1),
                        "cpu_overhead_percent": round(100 * (median(cpu) / base_cpu - 1), 1),
                    }
                    rows.append({**row, **facts})
                    print(" ".join(str(value) for value in list(row.values())[1:]), flush=True)

    commit = facts["commit"]
    output = options.output or RESULTS / f"core_{datetime.date.today():%Y-%m-%d}_{commit}.csv"
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[-1]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {output}")


def make_batch(positions, vocabulary):
    """A teacher and a student that has come close to it, one row of `positions` time steps."""
    generator = np.random.default_rng(0)
    teacher = generator.standard_normal((1, positions, vocabulary), np.float32) * 3
    student = teacher + generator.standard_normal((1, positions, vocabulary), np.float32)
    mask = np.ones((1, positions), bool)
    return jax.device_put((student, teacher, mask, generator.random((1, positions), np.float32)))


def time_variants(name, chunk_size, batch, repeats):
    """(wall, processor) seconds of each call, by verifier. The first call of each is not counted."""

    def compiled(verifier):
        objective = partial(distill.Objective(DIVERGENCES[name], verifier), chunk_size=chunk_size)

        def loss(student, teacher, mask, uniforms):
            sums = objective(student, teacher, mask, uniforms)
            return sums.loss / sums.count, sums

        return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*batch).compile()

    functions = {verifier: compiled(function) for verifier, function in VERIFIERS.items()}
    times = {verifier: [] for verifier in functions}
    for _ in range(repeats + 1):
        for verifier, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(function(*batch))
            times[verifier].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {verifier: seconds[1:] for verifier, seconds in times.items()}


def import_seconds():
    """What `import selecttkd_jax.losses` adds to `import jax` and `jax.numpy`, the median of five processes."""
    code = (
        "import time, jax, jax.numpy; start = time.perf_counter(); import selecttkd_jax.losses; "
        "print(time.perf_counter() - start)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    return median(float(run.stdout) for run in runs)


def describe():
    """Machine, versions and commit, so that a number can be traced to what produced it."""

    def git(*arguments):
        run = subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True)
        return run.stdout.strip()

    changed = "-changed" if git("status", "--porcelain", "--untracked-files=no", "--", "../selecttkd_jax") else ""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
        "commit": (git("rev-parse", "--short", "HEAD") or "unknown") + changed,
    }


if __name__ == "__main__":
    jnp.zeros(()).block_until_ready()  # start the backend before anything is timed
    main()
