"""Distils with SelecTKD in plain PyTorch: transformers' models, full logits, AdamW. Independent of selecttkd_jax.

Command:   python experiments/torch_baseline/train.py TEACHER STUDENT BATCHES.npz RESULT.json
               [--divergence reverse_kl] [--verifier greedy_top_k] [--k 5] [--floor 0.01] ...   (--help lists all)
Needs:     torch and transformers; two Hugging Face directories with one vocabulary; batches as
           experiments/reference_job/make_batches.py writes them (input_ids, segment_ids, loss_mask: [steps, B, T]).
Writes:    RESULT.json, a list with one object a step: step, loss, tar, grad_norm (before clipping), seconds, and, where
           the verifier says yes or no, `verdicts`: a string of 0 and 1, one for each response token.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import selecttkd_torch as selecttkd
import torch
from job import Settings, read_command_line
from transformers import AutoModelForCausalLM

BETAS, EPS = (0.9, 0.95), 1e-8


def make_loss(settings: Settings) -> Callable[..., selecttkd.SelectiveLoss]:
    """The loss as a function of (student_logits, teacher_logits, mask)."""
    divergence = {
        "forward_kl": selecttkd.forward_kl,
        "reverse_kl": selecttkd.reverse_kl,
        "skew_kl": partial(selecttkd.skew_kl, alpha=settings.alpha),
        "skew_reverse_kl": partial(selecttkd.skew_reverse_kl, alpha=settings.alpha),
    }[settings.divergence]
    generator = torch.Generator().manual_seed(settings.seed)
    verify = {
        "accept_all": selecttkd.accept_all,
        "greedy_top_k": partial(selecttkd.greedy_top_k, k=settings.k),
        "spec_k": partial(selecttkd.spec_k, k=settings.k, generator=generator),
        "spec_k_expected": partial(selecttkd.spec_k_acceptance, k=settings.k),
    }[settings.verifier]
    options = {"floor": settings.floor, "normalizer": settings.normalizer}
    return partial(selecttkd.selective_loss, divergence=divergence, verify=verify, **options)


def make_optimizer(settings: Settings, model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norm scales and biases alone."""
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, eps=EPS)


def rate(step: int, total_steps: int, warmup_fraction: float) -> float:
    """The share of the peak learning rate at a step counted from 0: a linear rise, then half a cosine down to 0.

    The first step already learns: of w steps of warm-up, step s has (s + 1) / w.
    """
    warmup = round(warmup_fraction * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total_steps - warmup, 1)))


def train(teacher: Path, student: Path, batches: Mapping[str, np.ndarray], settings: Settings) -> Iterator[dict]:
    """Trains the student, one step a batch, and yields what each step measured."""
    load = partial(AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    teacher_model = load(teacher).eval().requires_grad_(False)
    student_model = load(student).train()
    # Where padding and end of turn share an id, as in SmolLM2, transformers would hold back the gradient of that
    # token's embedding, real tokens included: 6 % of the whole table's gradient in the first step.
    student_model.get_input_embeddings().padding_idx = None
    selective_loss = make_loss(settings)
    optimizer = make_optimizer(settings, student_model)
    total_steps = len(batches["input_ids"])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, partial(rate, total_steps=total_steps, warmup_fraction=settings.warmup_fraction)
    )
    for step in range(total_steps):
        started = time.perf_counter()
        inputs = {
            "input_ids": torch.from_numpy(batches["input_ids"][step]).long(),
            "attention_mask": torch.from_numpy(batches["segment_ids"][step]).long(),
        }
        mask = torch.from_numpy(batches["loss_mask"][step])
        with torch.no_grad():
            teacher_logits = teacher_model(**inputs, use_cache=False).logits
        student_logits = student_model(**inputs, use_cache=False).logits
        loss, tar, accepted = selective_loss(student_logits, teacher_logits, mask)
        optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(student_model.parameters(), settings.clip_norm)
        optimizer.step()
        schedule.step()
        seconds = time.perf_counter() - started
        record = {"step": step + 1, "loss": loss.item(), "tar": tar.item(), "grad_norm": grad_norm.item()}
        if settings.verifier != "spec_k_expected":
            record["verdicts"] = "".join(str(int(verdict)) for verdict in accepted[mask])
        yield record | {"seconds": seconds}


def main() -> None:
    """Trains as the command line says, prints a line a step and writes the result."""
    job = read_command_line("Distil with SelecTKD in plain PyTorch.")
    records = []
    for record in train(job.teacher, job.student, np.load(job.batches), job.settings):
        print("  torch step {step:2d}  loss {loss:.5f}  {seconds:6.2f} s".format(**record), flush=True)
        records.append(record)
    job.result.write_text(json.dumps(records), encoding="utf-8")


if __name__ == "__main__":
    main()
