"""Would the head be faster with maximum and sum of exponentials in one sweep? On a CPU, and compiled for an H100.

Command:   python experiments/head_sweep.py        (for the H100: pip install '.[gpu-plan]')
Needs:     two CPU cores, 4 GB of memory.
Time:      three minutes.
Writes:    experiments/results/head_sweep.csv: a line a variant, place and vocabulary.

The fused head's softmax (`losses._closed_form.distribution`) takes the maximum of a row, then the sum of its
exponentials: two sweeps over logits. Against it, in turns:
  lanes      128 running maxima a row, and sums relative to each, put together at the end
  variadic   one reduction that carries a maximum and a sum relative to it
`cpu`: milliseconds of the divergence with its gradient at 512 positions, 8 at a time, as the head takes them; float32,
the least of five. `gpu:h100:1`: the least time of the kernels of a whole head with both gradients by the planner's
count, at 8,192 positions of width 3584 and 1536, bfloat16.
"""

import argparse
import csv
import importlib.util
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_core import describe

from selecttkd_jax import losses, planning, selection
from selecttkd_jax.distill import Head, Objective, Tokens, fused_head
from selecttkd_jax.losses import _closed_form
from selecttkd_jax.planning._estimate import sweep_rounds
from selecttkd_jax.planning._hlo import parse
from selecttkd_jax.planning._timeline import lay_out_timeline

LANES = 128
VOCABULARIES = (49_152, 128_256, 151_936)
two_sweeps = _closed_form.distribution


def from_total(logits: jax.Array, top: jax.Array, total: jax.Array) -> Any:
    """The distribution, from a row's maximum and the sum of its exponentials."""
    shifted = logits - top
    return _closed_form.Distribution(jnp.exp(shifted) / total, shifted - jnp.log(total))


def lanes(logits: jax.Array) -> Any:
    """With a running maximum in each of LANES lanes."""
    parts = logits.reshape(*logits.shape[:-1], -1, LANES)
    tops = jax.lax.stop_gradient(parts.max(-2))
    sums = jnp.exp(parts - tops[..., None, :]).sum(-2)
    top = tops.max(-1, keepdims=True)
    return from_total(logits, top, (sums * jnp.exp(tops - top)).sum(-1, keepdims=True))


def variadic(logits: jax.Array) -> Any:
    """With one reduction of two numbers."""

    def join(a: Any, b: Any) -> Any:
        top = jnp.maximum(a[0], b[0])
        return top, a[1] * jnp.exp(a[0] - top) + b[1] * jnp.exp(b[0] - top)

    start = jnp.float32(-1e30), jnp.float32(0)
    top, total = jax.lax.reduce((logits, jnp.ones_like(logits)), start, join, (logits.ndim - 1,))
    return from_total(logits, jax.lax.stop_gradient(top)[..., None], total[..., None])


VARIANTS = {"two sweeps": two_sweeps, "lanes": lanes, "variadic": variadic}


def on_cpu(vocabulary: int, rounds: int = 5) -> dict[str, float]:
    """Milliseconds of each variant; they take turns."""
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(size=(512, vocabulary)), jnp.float32) * 3 for _ in range(2))
    programs = {}
    for name, variant in VARIANTS.items():
        _closed_form.distribution = variant

        def by_eights(student: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
            def part(start: jax.Array, carry: Any) -> Any:
                z, fixed = (jax.lax.dynamic_slice_in_dim(x, 8 * start, 8) for x in (student, teacher))
                value, gradient = jax.value_and_grad(lambda z: losses.reverse_kl(z, fixed).sum())(z)
                return carry[0] + value, jax.lax.dynamic_update_slice_in_dim(carry[1], gradient, 8 * start, 0)

            return jax.lax.fori_loop(0, 64, part, (jnp.float32(0), jnp.zeros_like(student)))

        programs[name] = jax.jit(by_eights).lower(student, teacher).compile()
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds + 1):
        for name, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(student, teacher))
            seconds[name].append(time.perf_counter() - began)
    return {name: 1e3 * min(times[1:]) for name, times in seconds.items()}


def on_gpu(vocabulary: int) -> dict[str, float]:
    """Milliseconds of each variant's kernels on an H100, at least."""
    target = planning.parse_target("gpu:h100:1")
    (device,) = planning.target_devices(target)
    mesh = jax.sharding.Mesh(np.array([device]), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    objective = Objective(losses.reverse_kl, partial(selection.greedy_top_k, k=5), floor=0.01)

    def loss(student: Any, teacher: Any, mask: jax.Array) -> jax.Array:
        heads = Head(student[1]), Head(teacher[1])
        return fused_head(objective, student[0], heads[0], teacher[0], heads[1], Tokens(mask)).loss

    def shape(*sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=everywhere)

    models = [(shape(8, 1024, width), shape(width, vocabulary)) for width in (1536, 3584)]
    found = {}
    for name, variant in VARIANTS.items():
        _closed_form.distribution = variant
        with jax.set_mesh(mesh):
            step = jax.jit(lambda *arguments: jax.value_and_grad(loss)(*arguments))
            text = step.lower(*models, shape(8, 1024, dtype=jnp.bool_)).compile().as_text()
        assert text is not None
        found[name] = 1e3 * lay_out_timeline(parse(text), target.device, 1, sweep_rounds(8192)).seconds
    return found


def main() -> None:
    """Measures, compiles, and writes the table."""
    argparse.ArgumentParser(description="The head's softmax in one sweep or two.").parse_args()
    jax.config.update("jax_platforms", "cpu")
    places = {"cpu": on_cpu} | ({"gpu:h100:1": on_gpu} if importlib.util.find_spec("jax_cuda12_plugin") else {})
    lines = []
    for place, measure in places.items():
        for vocabulary in VOCABULARIES:
            found = measure(vocabulary)
            for name, milliseconds in found.items():
                ratio = milliseconds / found["two sweeps"]
                lines.append({"where": place, "vocabulary": vocabulary, "variant": name})
                lines[-1] |= {"ms": f"{milliseconds:.1f}", "by_two_sweeps": f"{ratio:.3f}", **describe()}
                print(*list(lines[-1].values())[:5], flush=True)
    with (Path(__file__).parent / "results" / "head_sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
