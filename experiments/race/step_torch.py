"""A plain PyTorch training step: transformers' models, forward KL over the response tokens, AdamW.

    python step_torch.py DIRECTORY full|rows|compile

"full" takes the divergence of all positions and masks it, "rows" picks the response's logits first, "compile" is "full"
with the loss compiled (the models are not).
"""

import argparse
from pathlib import Path

import torch
import transformers
from channel import Channel, serve
from selecttkd_torch import forward_kl
from torch_models import load_batches, load_models


def main():
    """Loads, then serves one step a turn, each on the next batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("contender", choices=["full", "rows", "compile"])
    options = parser.parse_args()
    channel = Channel()
    teacher, student = load_models(options.directory)
    batches = iter(load_batches(options.directory))
    loss_of = {"full": masked_mean, "rows": mean_of_rows, "compile": masked_mean}[options.contender]
    if options.contender == "compile":
        loss_of = torch.compile(loss_of)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    channel.ready(versions=versions, threads=torch.get_num_threads())

    def work():
        inputs, mask = next(batches)
        with torch.no_grad():
            teacher_logits = teacher(**inputs, use_cache=False).logits
        loss = loss_of(student(**inputs, use_cache=False).logits, teacher_logits, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.item()}, {}

    serve(channel, work)


def masked_mean(student_logits, teacher_logits, mask):
    """The mean over the mask of every position's divergence."""
    return (forward_kl(student_logits, teacher_logits) * mask).sum() / mask.sum()


def mean_of_rows(student_logits, teacher_logits, mask):
    """The mean of the divergence of the positions of the mask."""
    return forward_kl(student_logits[mask], teacher_logits[mask]).mean()


if __name__ == "__main__":
    main()
