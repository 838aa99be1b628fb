"""The reference job as a plain PyTorch loop: transformers' models, full logits, forward KL, AdamW.

Run by run.py; alone:  python torch_loop.py TEACHER STUDENT BATCHES.npz RESULT.json [--normalizer sequence|token]
"""

import argparse
import json
import time

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("teacher")
parser.add_argument("student")
parser.add_argument("batches")
parser.add_argument("result")
parser.add_argument("--normalizer", choices=("sequence", "token"), default="sequence")
parser.add_argument("--learning-rate", type=float, default=3e-4)
options = parser.parse_args()

teacher = AutoModelForCausalLM.from_pretrained(options.teacher, dtype=torch.float32).eval().requires_grad_(False)
student = AutoModelForCausalLM.from_pretrained(options.student, dtype=torch.float32).train()
# SmolLM2 pads with the id that ends a turn; transformers would hold back that token's gradient everywhere.
student.get_input_embeddings().padding_idx = None
optimizer = torch.optim.AdamW(
    student.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
)
batches = np.load(options.batches)

losses, seconds = [], []
for input_ids, segment_ids, loss_mask in zip(
    batches["input_ids"], batches["segment_ids"], batches["loss_mask"], strict=True
):
    started = time.perf_counter()
    inputs = {"input_ids": torch.from_numpy(input_ids).long(), "attention_mask": torch.from_numpy(segment_ids).long()}
    mask = torch.from_numpy(loss_mask)
    with torch.no_grad():
        teacher_log_probs = F.log_softmax(teacher(**inputs, use_cache=False).logits, dim=-1)
    student_log_probs = F.log_softmax(student(**inputs, use_cache=False).logits, dim=-1)
    divergence = F.kl_div(student_log_probs, teacher_log_probs, log_target=True, reduction="none").sum(-1)
    if options.normalizer == "sequence":
        loss = ((divergence * mask).sum(1) / mask.sum(1)).mean()
    else:
        loss = (divergence * mask).sum() / mask.sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    seconds.append(time.perf_counter() - started)
    print(f"  torch step {len(losses):2d}  loss {losses[-1]:.5f}  {seconds[-1]:6.2f} s", flush=True)

with open(options.result, "w", encoding="utf-8") as file:
    json.dump({"losses": losses, "seconds": seconds}, file)
