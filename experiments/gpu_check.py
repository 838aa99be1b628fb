"""On a machine with a GPU: is it right, how fast is it, and does the plan tell the truth? One command, ten minutes.

    make gpu-check                             (or: python experiments/gpu_check.py --minutes 8)
    python experiments/gpu_check.py --tiny     toy sizes, anywhere; `make test` runs this on a CPU

Rows, each with the card, the versions and the commit, in experiments/results/gpu_check_<card>_<commit>.csv:

rates      What the card does at best: a copy in its memory, a bfloat16 product.
numerics   Fused head and attention against float64, a training step against the same step on the CPU: the relative
           error ||found - right|| / ||right|| and what it has to stay below. JAX's float32 products on a GPU are TF32
           unless `jax_default_matmul_precision` says otherwise, hence two rows each.
head       Reverse KL with its gradients at V = 151,936 beside PyTorch eager and torch.compile (greedy top-5), and
           beside the four matrix products that nobody avoids.
attention  Forward and backward of one 7B layer on the same tokens at several lengths, dense and cuDNN, beside PyTorch.
decode     7B in bfloat16, 256 rows: a token's time beside the time that reading weights and cache takes at the copy's
           rate, and what the compiled loop copies or pads.
step       7B teaches 1.5B: a whole step, its memory, and what `plan` said of both.

Times are the mean of calls queued one behind the other, warmed up, on the clock of the host; PyTorch runs in a process
of its own with device events. Expected: see "GPU" in experiments/README.md.
"""

import argparse
import csv
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch's turn needs the memory, too

import jax
import jax.numpy as jnp
import numpy as np
from bench_core import describe

from selecttkd_jax import data, distill, losses, models, planning, runs, selection
from selecttkd_jax.generation import Decoder, Sampling
from selecttkd_jax.models._attention import attend, attend_by_kernel, describe_rows
from selecttkd_jax.sharding import make_mesh
from selecttkd_jax.training import Frozen, OneStream, OptimizerConfig, Pair, init_state, make_optimizer, make_train_step

RESULTS = Path(__file__).parent / "results"
QWEN_7B = models.DecoderConfig(
    152_064,
    3584,
    18_944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    qkv_bias=True,
    max_positions=32_768,
)
QWEN_15B = models.DecoderConfig(
    151_936,
    1536,
    8960,
    num_layers=28,
    num_heads=12,
    num_kv_heads=2,
    head_dim=128,
    qkv_bias=True,
    tied_head=True,
    max_positions=32_768,
)
TOY = models.DecoderConfig(64, 32, 48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, max_positions=256)
SIZES = {
    "copy_mib": 2048,
    "product": 8192,
    "head": (4096, 1536, 3584, 151_936),
    "attention": (8192, (1024, 2048, 4096, 8192), 28, 4, 128),
    "decode": (QWEN_7B, 256, 128, 257),
    "step": (QWEN_7B, QWEN_15B, ((8, 1024), (2, 4096))),
}
TINY = {
    "copy_mib": 1,
    "product": 64,
    "head": (32, 16, 24, 128),
    "attention": (64, (32, 64), 4, 2, 8),
    "decode": (TOY, 3, 8, 9),
    "step": (TOY, TOY, ((2, 16),)),
}


def main() -> int:
    """Runs the parts in order while there is time, and writes the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="no part begins later")
    parser.add_argument("--parts", default="rates,numerics,head,attention,decode,step", help="by commas")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, for a machine without a GPU")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = TINY if options.tiny else SIZES
    if options.torch:
        torch_side(sizes)
        return 0
    logging.basicConfig(level=logging.WARNING)
    device = jax.devices()[0]
    if device.platform != "gpu" and not options.tiny:
        parser.error(f"JAX sees no GPU here ({device.platform}); --tiny checks toy sizes anywhere")
    facts = {"card": device.device_kind, **describe()}
    card = re.sub(r"\W+", "-", device.device_kind).lower()
    check = Check(sizes, device, facts, options.output or RESULTS / f"gpu_check_{card}_{facts['commit']}.csv")
    parts = {"rates": rates, "numerics": numerics, "head": head, "attention": attention, "decode": decode, "step": step}
    began = time.perf_counter()
    for name in options.parts.split(","):
        if time.perf_counter() - began > 60 * options.minutes:
            print(f"{name}: left out, the time is up", flush=True)
            continue
        part_began = time.perf_counter()
        parts[name](check)
        print(f"{name}: {time.perf_counter() - part_began:.0f} s", flush=True)
    wrong = [row for row in check.rows if row.get("allowed") and not row["value"] <= row["allowed"]]
    for row in wrong:
        print(f"WRONG: {row['part']} {row['what']} {row['who']}: {row['value']} > {row['allowed']}")
    print(f"written to {check.output}")
    return 1 if wrong else 0


class Check:
    """The rows so far; each is printed and written at once."""

    def __init__(self, sizes: dict, device: jax.Device, facts: dict, output: Path):
        self.sizes, self.device, self.facts, self.output, self.rows = sizes, device, facts, output, []
        self.torch: list[dict] | None = None

    def add(self, part: str, what: str, who: str, unit: str, value: float, **more: float | None) -> None:
        """A number; `more`: `allowed` for an error, `bound` for a least time, `memory_mib`."""
        more = {name: number for name, number in more.items() if number is not None}
        self.rows.append({"part": part, "what": what, "who": who, "unit": unit, "value": float(f"{value:.5g}"), **more})
        print(
            "  ".join(
                str(x) for x in (part, what, who, f"{value:.4g} {unit}", *(f"{k} {v:.4g}" for k, v in more.items()))
            ),
            flush=True,
        )
        self.output.parent.mkdir(parents=True, exist_ok=True)
        columns = ["part", "what", "who", "unit", "value", "allowed", "bound", "memory_mib", *self.facts]
        with self.output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | self.facts for row in self.rows)

    def rate(self, what: str) -> float | None:
        """A rate that was measured before, in its unit."""
        return next((row["value"] for row in self.rows if row["part"] == "rates" and row["what"] == what), None)

    def add_torch(self, part: str) -> None:
        """PyTorch's rows of a part; all of them are measured at the first call."""
        if self.torch is None:
            self.torch = []
            command = [sys.executable, __file__, "--torch", *(["--tiny"] if self.sizes is TINY else [])]
            found = subprocess.run(command, capture_output=True, text=True)
            lines = [line for line in found.stdout.splitlines() if line.startswith("{")]
            self.torch = [json.loads(line) for line in lines]
            if found.returncode:
                print(f"PyTorch stopped: {(found.stderr.strip().splitlines() or ['no word'])[-1]}", flush=True)
        for row in self.torch:
            if row["part"] == part:
                self.add(**row)


def clock(function, *arguments, least: float = 0.3, most: int = 100) -> float:
    """Milliseconds of a call among calls that queue one behind the other."""
    for _ in range(2):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        once = time.perf_counter() - began
    count = int(min(max(least / once, 3), most))
    began = time.perf_counter()
    for _ in range(count):
        out = function(*arguments)
    jax.block_until_ready(out)
    return 1000 * (time.perf_counter() - began) / count


def rates(check: Check) -> None:
    """What the card does at best."""
    source = jnp.ones(check.sizes["copy_mib"] * 2**20 // 4, jnp.float32)
    ms = clock(jax.jit(lambda x: x + 1), source)
    check.add("rates", "copy", "jax", "GB/s", 2 * source.nbytes / ms / 1e6)
    n = check.sizes["product"]
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16)
    check.add("rates", "product bfloat16", "jax", "TFLOP/s", 2 * n**3 / clock(jax.jit(jnp.matmul), a, a) / 1e9)


# --- Numerics ---


def relative(found, right) -> float:
    """||found - right|| / ||right||, in float64."""
    found, right = np.asarray(found, np.float64), np.asarray(right, np.float64)
    return float(np.linalg.norm(found - right) / np.linalg.norm(right))


def numerics(check: Check) -> None:
    """Head, attention and step against more digits."""
    cases = {
        "float32, highest": ("float32", "highest", 2e-5),
        "float32, default": ("float32", None, 5e-3),
        "bfloat16": ("bfloat16", None, 2e-2),
    }
    for name, (dtype, precision, allowed) in cases.items():
        with jax.default_matmul_precision(precision) if precision else jax.default_matmul_precision("default"):
            for what, error in (head_errors(dtype) | attention_errors(check, dtype)).items():
                check.add("numerics", what, name, "relative error", error, allowed=allowed)
    check.add("numerics", "loss of a step", "float32, highest", "relative error", step_error(check), allowed=1e-5)


def head_errors(dtype: str) -> dict[str, float]:
    """Forward KL from hidden states and its gradients, written out in float64: the gradient of the logits is q - p."""
    rng = np.random.default_rng(0)
    n, d, v = 192, 64, 3000
    student, teacher = (jnp.asarray(rng.standard_normal((1, n, d)), dtype) for _ in range(2))
    matrix, teacher_matrix = (jnp.asarray(rng.standard_normal((d, v)) / 4, dtype) for _ in range(2))

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def ours(hidden, matrix):
        objective = distill.Objective(losses.forward_kl, normalizer="token")
        tokens = distill.Tokens(mask=jnp.ones((1, n), bool))
        sums = distill.fused_head(
            objective, hidden, distill.Head(matrix), teacher, distill.Head(teacher_matrix), tokens, chunk_size=64
        )
        return sums.loss / sums.count

    loss, (hidden_gradient, matrix_gradient) = ours(student, matrix)
    h, w, th, tw = (np.asarray(x, np.float64) for x in (student[0], matrix, teacher[0], teacher_matrix))

    def log_softmax(logits):
        logits = logits - logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    log_q, log_p = log_softmax(h @ w), log_softmax(th @ tw)
    right = np.mean(np.sum(np.exp(log_p) * (log_p - log_q), -1))
    logits_gradient = (np.exp(log_q) - np.exp(log_p)) / n
    return {
        "head: loss": abs(float(loss) / right - 1),
        "head: gradient of hidden states": relative(hidden_gradient[0], logits_gradient @ w.T),
        "head: gradient of the matrix": relative(matrix_gradient, h.T @ logits_gradient),
    }


def attention_errors(check: Check, dtype: str) -> dict[str, float]:
    """Attention over padded and over packed rows: softmax(q k^T / sqrt(E)) v, and its gradients."""
    alone = errors_on_texts(check, dtype, "attention", [(96,), (48,), (5,)])
    return alone | errors_on_texts(check, dtype, "packed attention", [(40, 31, 25), (48, 7), (5, 5, 5)])


def errors_on_texts(check: Check, dtype: str, what: str, texts: list[tuple[int, ...]]) -> dict[str, float]:
    """The same for rows that hold these texts."""
    rng = np.random.default_rng(1)
    b, t, h, k, e = 3, 96, 8, 2, 64
    numbers = [np.repeat(np.arange(1, len(row) + 1), row) for row in texts]
    segments = np.stack([np.pad(row, (0, t - len(row))) for row in numbers])
    q, keys, values, weight = (jnp.asarray(rng.standard_normal((b, t, heads, e)), dtype) for heads in (h, k, k, h))
    real = segments != 0
    mask = np.tril(np.ones((t, t), bool))[None] & (segments[:, None, :] == segments[:, :, None])
    found = {}
    kernels = {"dense": lambda q, k, v: attend(q, k, v, jnp.asarray(mask))}
    if dtype == "bfloat16":
        kernels |= cudnn_kernels(check, jnp.asarray(segments))

    # float64: the repeated key heads, one row of scores after the other.
    q64, k64, v64, w64 = (np.asarray(x, np.float64) for x in (q, keys, values, weight))
    k64, v64 = (np.repeat(x, h // k, axis=2) for x in (k64, v64))
    scores = np.where(mask[:, None], np.einsum("bthe,bshe->bhts", q64, k64) / np.sqrt(e), -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    w64 = w64 * real[:, :, None, None]
    right = np.einsum("bhts,bshe->bthe", p, v64) * real[:, :, None, None]
    dp = np.einsum("bthe,bshe->bhts", w64, v64)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / np.sqrt(e)
    right_q = np.einsum("bhts,bshe->bthe", ds, k64)
    right_k = np.einsum("bhts,bthe->bshe", ds, q64).reshape(b, t, k, h // k, e).sum(3)
    right_v = np.einsum("bhts,bthe->bshe", p, w64).reshape(b, t, k, h // k, e).sum(3)
    for name, kernel in kernels.items():

        @jax.jit
        def ours(q, keys, values, kernel=kernel):
            out, pull = jax.vjp(kernel, q, keys, values)
            return out, pull((weight * real[:, :, None, None]).astype(out.dtype))

        out, (dq, dk, dv) = ours(q, keys, values)
        found[f"{what}, {name}"] = relative(np.asarray(out, np.float64) * real[:, :, None, None], right)
        for gradient, expected, of in ((dq, right_q, "queries"), (dk, right_k, "keys"), (dv, right_v, "values")):
            found[f"{what}, {name}: gradient of {of}"] = relative(gradient, expected)
    return found


def step_error(check: Check) -> float:
    """The loss of three steps of toy models here and on the CPU."""
    with jax.default_matmul_precision("highest"):
        both = [toy_losses(device) for device in (check.device, jax.devices("cpu")[0])]
    return relative(*both)


def toy_losses(device: jax.Device) -> list[float]:
    """Three steps, greedy top-5."""
    pair = Pair(TOY, TOY, TOY.vocab_size)
    with jax.default_device(device):
        teacher, student = (models.init_params(TOY, jax.random.key(seed)) for seed in (0, 1))
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), 3)
        objective = distill.Objective(losses.reverse_kl, partial(selection.greedy_top_k, k=5))
        train = make_train_step(OneStream(pair, objective), optimizer)
        state, found = init_state(student, optimizer, seed=0), []
        for _ in range(3):
            state, metrics = train(state, Frozen(teacher=teacher), full_batch(4, 32, TOY.vocab_size))
            found.append(float(metrics["sums"].loss) / float(metrics["sums"].count))
    return found


def full_batch(rows: int, length: int, vocabulary: int) -> data.Batch:
    """Rows without padding; the second half of each carries loss."""
    shape = rows, length
    ids = np.random.default_rng(0).integers(0, vocabulary, shape).astype(np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    return data.Batch(
        input_ids=ids,
        labels=np.roll(ids, -1, 1),
        loss_mask=positions >= length // 2,
        positions=positions,
        segment_ids=np.ones(shape, np.int32),
    )


# --- Timings ---


def head(check: Check) -> None:
    """Reverse KL on every position, from hidden states to gradients."""
    n, d, teacher_d, v = check.sizes["head"]
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, teacher = (
        jax.random.normal(key, (1, n, size), jnp.bfloat16) for key, size in zip(keys, (d, teacher_d), strict=False)
    )
    matrix, teacher_matrix = (
        jax.random.normal(key, (size, v), jnp.bfloat16) / size**0.5
        for key, size in zip(keys[2:], (d, teacher_d), strict=True)
    )
    tokens = distill.Tokens(mask=jnp.ones((1, n), bool), uniforms=jax.random.uniform(keys[0], (1, n)))
    verifiers = {
        "accept_all": selection.accept_all,
        "greedy_top_k": partial(selection.greedy_top_k, k=5),
        "spec_k": partial(selection.spec_k, k=5),
    }
    rate = check.rate("product bfloat16")
    bound = rate and 2 * n * v * (teacher_d + 3 * d) / rate / 1e9
    for name, verifier in verifiers.items():
        objective = distill.Objective(losses.reverse_kl, verifier, floor=0.01, normalizer="token")

        def loss(hidden, matrix, teacher, teacher_matrix, objective=objective):
            sums = distill.fused_head(
                objective, hidden, distill.Head(matrix), teacher, distill.Head(teacher_matrix), tokens
            )
            return sums.loss / sums.count

        arguments = hidden, matrix, teacher, teacher_matrix
        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
        check.add(
            "head", f"N {n}, V {v}", f"ours, {name}", "ms", clock(compiled, *arguments), bound=bound, memory_mib=memory
        )

    @jax.jit
    def products(hidden, matrix, teacher, teacher_matrix):
        student_logits = hidden[0] @ matrix
        return teacher[0] @ teacher_matrix, student_logits @ matrix.T, hidden[0].T @ student_logits

    check.add(
        "head",
        f"N {n}, V {v}",
        "the four products, jax",
        "ms",
        clock(products, hidden, matrix, teacher, teacher_matrix),
        bound=bound,
    )
    check.add_torch("head")


def attention(check: Check) -> None:
    """Forward and backward of one layer."""
    tokens, lengths, h, k, e = check.sizes["attention"]
    for length in lengths:
        rows = tokens // length
        keys = jax.random.split(jax.random.key(0), 3)
        q, keys, values = (
            jax.random.normal(key, (rows, length, heads, e), jnp.bfloat16)
            for key, heads in zip(keys, (h, k, k), strict=True)
        )
        mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (rows, length, length))
        kernels = {"dense": lambda q, k, v, mask=mask: attend(q, k, v, mask)}
        kernels |= cudnn_kernels(check, jnp.ones((rows, length), int))
        # The same in four texts a row: a quarter of the scores.
        quarters = jnp.broadcast_to(1 + jnp.arange(length) * 4 // length, (rows, length))
        kernels |= {f"{name}, four texts": kernel for name, kernel in cudnn_kernels(check, quarters).items()}
        # Causal: half of the scores; two products forward, five backward.
        rate = check.rate("product bfloat16")
        bound = rate and 7 * tokens * length * h * e / rate / 1e9
        for name, kernel in kernels.items():
            both = jax.jit(
                jax.grad(lambda q, k, v, kernel=kernel: jnp.sum(kernel(q, k, v).astype(jnp.float32)), argnums=(0, 1, 2))
            )
            compiled = both.lower(q, keys, values).compile()
            memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
            check.add(
                "attention",
                f"T {length}",
                f"ours, {name}",
                "ms",
                clock(compiled, q, keys, values),
                bound=bound,
                memory_mib=memory,
            )
    check.add_torch("attention")


def decode(check: Check) -> None:
    """A token of every row; the loop's own program."""
    config, rows, prompt, new = check.sizes["decode"]
    decoder = Decoder(config, Sampling(temperature=0, max_new_tokens=new), dtype=jnp.dtype(jnp.bfloat16))
    params = jax.jit(lambda key: models.init_params(config, key, jnp.bfloat16))(jax.random.key(0))
    params = jax.jit(models.unstack_layers)(params)  # in one program each layer would draw all of them
    length = -(-(prompt + new - 1) // 64) * 64
    key, none = jax.random.key(0), np.full(8, -1, np.int32)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (rows, prompt)).astype(np.int32)

    def prefill():
        slots = decoder.make_slots(params, rows, length, key)
        return decoder.insert(
            params,
            slots,
            ids,
            np.full(rows, prompt, np.int32),
            jax.random.split(key, rows),
            np.arange(rows),
            none,
        )

    compiled = Decoder.run.lower(decoder, params, prefill(), none, np.int32(0)).compile()
    seconds = []
    for _ in range(3):
        slots = jax.block_until_ready(prefill())
        began = time.perf_counter()
        jax.block_until_ready(compiled(params, slots, none, np.int32(0)))
        seconds.append(time.perf_counter() - began)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - (
        0 if config.tied_head else params["embedding"].nbytes
    )
    cache = 2 * config.num_layers * rows * length * config.num_kv_heads * config.head_dim * 2
    rate = check.rate("copy")
    what = f"{models.count_params(config) / 1e9:.1f} B parameters, {rows} rows, {length} slots"
    ms = 1000 * sorted(seconds)[1] / (new - 1)
    memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
    check.add(
        "decode", what, "ours", "ms a token", ms, bound=rate and (weights + cache) / rate / 1e6, memory_mib=memory
    )
    moved = moved_bytes(compiled.as_text(), 2 * rows * length * config.head_dim * config.num_kv_heads)
    check.add(
        "decode",
        "bytes that the program copies or pads outside of fusions",
        "ours",
        "of weights and cache",
        moved / (weights + cache),
    )


def moved_bytes(text: str, least: int) -> int:
    """Bytes of the copies, pads and transposes of arrays of at least so many bytes."""
    width = {"bf16": 2, "f16": 2, "f32": 4}
    found = re.findall(r"= (bf16|f16|f32)\[([\d,]+)\]\S* (?:copy|pad|transpose|concatenate)\(", text)
    sizes = [width[dtype] * prod(map(int, shape.split(","))) for dtype, shape in found]
    return sum(size for size in sizes if size >= least)


def cudnn_kernels(check: Check, segments: jax.Array) -> dict[str, Callable[..., jax.Array]]:
    """CuDNN's attention over rows of these texts, as far as this device has it; the padding has segment 0."""
    config = models.DecoderConfig(8, 8, 8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=64)
    capability = getattr(check.device, "compute_capability", None)
    places = jnp.arange(segments.shape[1])
    starts = jax.lax.cummax(jnp.where(jnp.diff(segments, axis=1, prepend=0) != 0, places, 0), axis=1)
    found = {}
    for packed in (False, True):
        if not packed and int(segments.max()) > 1:
            continue
        options = {"packed": packed, "capability": capability}
        name, _ = models.choose_attention("auto", check.device.platform, "bfloat16", config, **options)
        if name.startswith("cudnn"):
            rows = describe_rows(places - starts, segments, name)
            label = "cuDNN for packed rows" if packed else "cuDNN"
            found[label] = partial(attend_by_kernel, rows=rows, attention=name)
    return found


def step(check: Check) -> None:
    """Whole steps of a run's own configuration, and the plan's word on them."""
    teacher, student, shapes = check.sizes["step"]
    gpu = check.device.platform == "gpu"
    card = next((name for name in planning.DEVICES["gpu"] if name.split("-")[0] in check.facts["card"].lower()), None)
    target = planning.parse_target(f"gpu:{card}:1" if gpu and card else "cpu:1")
    with tempfile.TemporaryDirectory() as scratch:
        for name, config in (("teacher", teacher), ("student", student)):
            (Path(scratch) / name).mkdir()
            (Path(scratch) / name / "config.json").write_text(json.dumps(models.hf_config(config)))
        for rows, length in shapes:
            for kernel in ("cudnn", "xla") if gpu else ("xla",):
                one_step(check, target, Path(scratch), rows, length, kernel)


def one_step(check: Check, target: planning.Target, scratch: Path, rows: int, length: int, kernel: str) -> None:
    """One shape with one kind of attention."""
    dtype = "bfloat16"
    config = runs.config_from_dict(
        {
            "output": "unused",
            "models": {
                "teacher": str(scratch / "teacher"),
                "student": str(scratch / "student"),
                "teacher_dtype": dtype,
                "compute_dtype": dtype,
                "attention": kernel,
            },
            "data": {"train": "unused", "max_length": length, "batch_size": rows, "packing": "off"},
            "objective": {"divergence": "reverse_kl", "verifier": "greedy_top_k", "k": 5},
            "training": {"steps": 10},
        },
        "gpu_check",
    ).resolved()
    what = f"{rows} x {length}, {kernel}"
    peak_before = peak_mib(check.device)
    try:
        pair = runs.abstract_pair(config)
        planned = planning.compile_step(config, pair, [check.device])
        estimate = planning.estimate(config, target, planned)
        mesh = make_mesh(config.mesh, [check.device])
        train, specs = runs.specify_step(config, pair, mesh)
        with jax.set_mesh(mesh):
            optimizer = make_optimizer(config.optimizer, config.training.steps)
            teacher = models.init_params(pair.teacher, jax.random.key(0), jnp.bfloat16)
            state = init_state(models.init_params(pair.student, jax.random.key(1)), optimizer, seed=0)
            state = jax.tree.map(lambda leaf, spec: jax.device_put(leaf, spec.sharding), state, specs.state)
            batch = full_batch(rows, length, pair.student.vocab_size)
            compiled = train.lower(state, Frozen(teacher=teacher), batch).compile()
            seconds = []
            for _ in range(5):
                began = time.perf_counter()
                state, metrics = compiled(state, Frozen(teacher=teacher), batch)
                float(metrics["grad_norm"])
                seconds.append(time.perf_counter() - began)
    except jax.errors.JaxRuntimeError as error:
        print(f"step {what}: {str(error).splitlines()[0]}", flush=True)
        return
    peak = peak_mib(check.device)  # the process's; a step that needs less than one before it does not show
    seconds = sorted(seconds[1:])[1]
    check.add("step", what, "ours", "ms", 1000 * seconds, memory_mib=peak if peak > peak_before else None)
    least = estimate.step_seconds
    check.add("step", what, "plan", "ms", 1000 * (least or float("nan")), memory_mib=planned.memory.peak / 2**20)
    check.add("step", what, "ours", "tokens/s", rows * length / seconds)


def peak_mib(device: jax.Device) -> float:
    """The most that this process has held of the device's memory."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**20


# --- PyTorch, in a process of its own ---


def torch_side(sizes: dict) -> None:
    """Prints a JSON object for each row."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent / "torch_baseline"))
    from selecttkd_torch import greedy_top_k, reverse_kl, selective_loss

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def measure(part, what, who, work):
        try:
            for _ in range(3):
                work()
            if device == "cpu":
                began = time.perf_counter()
                work()
                ms, memory = 1000 * (time.perf_counter() - began), None
            else:
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                for _ in range(10):
                    work()
                end.record()
                torch.cuda.synchronize()
                ms, memory = start.elapsed_time(end) / 10, (torch.cuda.max_memory_allocated() - before) / 2**20
        except torch.OutOfMemoryError:
            print(f"{part} {who}: out of memory", file=sys.stderr)
            return
        row = {"part": part, "what": what, "who": who, "unit": "ms", "value": ms, "memory_mib": memory}
        print(json.dumps(row), flush=True)

    n, d, teacher_d, v = sizes["head"]
    make = partial(torch.randn, device=device, dtype=torch.bfloat16)
    hidden, matrix = make(n, d).requires_grad_(), (make(v, d) / d**0.5).requires_grad_()
    teacher, teacher_matrix, mask = (
        make(n, teacher_d),
        make(v, teacher_d) / teacher_d**0.5,
        torch.ones(n, dtype=torch.bool, device=device),
    )

    def loss(hidden, matrix):
        with torch.no_grad():
            teacher_logits = (teacher @ teacher_matrix.T).float()
        student_logits = (hidden @ matrix.T).float()
        return selective_loss(
            student_logits, teacher_logits, mask, reverse_kl, greedy_top_k, floor=0.01, normalizer="token"
        ).loss

    def with_gradients(loss):
        hidden.grad = matrix.grad = None
        loss(hidden, matrix).backward()

    measure("head", f"N {n}, V {v}", "PyTorch eager, greedy_top_k", lambda: with_gradients(loss))
    if device == "cuda":
        compiled = torch.compile(loss)
        measure("head", f"N {n}, V {v}", "torch.compile, greedy_top_k", lambda: with_gradients(compiled))
    tokens, lengths, h, k, e = sizes["attention"]
    for length in lengths:
        q, keys, values = (make(tokens // length, heads, length, e).requires_grad_() for heads in (h, k, k))

        def attend_torch(q=q, keys=keys, values=values):
            q.grad = keys.grad = values.grad = None
            torch.nn.functional.scaled_dot_product_attention(
                q, keys, values, is_causal=True, enable_gqa=True
            ).float().sum().backward()

        measure("attention", f"T {length}", "PyTorch scaled_dot_product_attention", attend_torch)


if __name__ == "__main__":
    sys.exit(main())
