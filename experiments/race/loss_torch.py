"""PyTorch's contenders of the loss race: loss, verification and gradients from hidden states and heads.

    python loss_torch.py TENSORS eager|compile|eager_rows|compile_rows|trl|trl_verified|products|baseline

"rows" projects only the positions of the mask, the others all of them. "trl" is TRL's chunked divergence as it ships,
which verifies nothing: it is given the acceptances. "trl_verified" verifies, too, a chunk of positions at a time.
"""

import argparse
from pathlib import Path

import tensors
import torch
import torch_objective
from channel import Channel, serve


def main():
    """Loads, then serves one contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tensors", type=Path)
    parser.add_argument("contender", choices=[*CONTENDERS, "baseline", "trl_baseline"])
    options = parser.parse_args()
    channel = Channel()
    versions = f"torch {torch.__version__}"
    if options.contender.startswith("trl"):
        import trl
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # noqa: F401

        versions += f", trl {trl.__version__}"
    loaded = tensors.load(options.tensors, torch.from_numpy)
    inputs = {name: loaded[name].flatten(0, 1) for name in ("student_hidden", "teacher_hidden", "mask")}
    inputs |= {name: loaded[name] for name in ("student_head", "teacher_head")}
    facts = {"versions": versions, "threads": torch.get_num_threads()}
    if options.contender.endswith("baseline"):
        gradient = torch.ones_like(inputs["student_head"])  # ones: what is never written is not resident
        channel.ready(**facts, kept=gradient.numel())
        channel.next_turn()
        return
    for name in ("student_hidden", "student_head"):
        inputs[name].requires_grad_(options.contender != "products")
    work = CONTENDERS[options.contender](**inputs)
    channel.ready(**facts)
    serve(channel, work)


def with_gradients(loss, student_hidden, student_head, **rest):
    """Work that calls `loss` and its backward pass and hands the two gradients over."""

    def work():
        value, accepted = loss(student_hidden, student_head, **rest)
        value.backward()
        gradients = {"hidden_gradient": student_hidden.grad, "head_gradient": student_head.grad}
        student_hidden.grad = student_head.grad = None
        return {"loss": value.item(), "accepted": int(accepted)}, gradients

    return work


def eager(**inputs):
    """Everything, operation by operation."""
    return with_gradients(torch_objective.loss_from_hidden, **inputs)


def compiled(**inputs):
    """The same, compiled."""
    return with_gradients(torch.compile(torch_objective.loss_from_hidden), **inputs)


def eager_rows(**inputs):
    """The same as `eager` on the positions of the mask alone; picking them out is part of the work."""
    return with_gradients(on_rows(torch_objective.loss_from_hidden), **inputs)


def compiled_rows(**inputs):
    """The same as `eager_rows`, compiled for this number of positions."""
    return with_gradients(on_rows(torch.compile(torch_objective.loss_from_hidden)), **inputs)


def on_rows(loss):
    """A loss that sees the positions of the mask only."""

    def loss_on_rows(student_hidden, student_head, teacher_hidden, teacher_head, mask):
        return loss(student_hidden[mask], student_head, teacher_hidden[mask], teacher_head, mask[mask])

    return loss_on_rows


def trl(**inputs):
    """TRL's divergence; the acceptances are given, so it does less than the others."""
    heads_and_hidden = {name: value.detach() for name, value in inputs.items() if name != "mask"}
    accepted = torch_objective.verify_by_chunks(**heads_and_hidden)

    def loss(student_hidden, student_head, teacher_hidden, teacher_head, mask):
        divergence = trl_reverse_kl(student_hidden, student_head, teacher_hidden, teacher_head)
        return torch_objective.loss_from_divergence(divergence, accepted, mask)

    return with_gradients(loss, **inputs)


def trl_verified(**inputs):
    """TRL's divergence, and before it a sweep that verifies."""

    def loss(student_hidden, student_head, teacher_hidden, teacher_head, mask):
        pair = student_hidden, student_head, teacher_hidden, teacher_head
        accepted = torch_objective.verify_by_chunks(*pair)
        return torch_objective.loss_from_divergence(trl_reverse_kl(*pair), accepted, mask)

    return with_gradients(loss, **inputs)


def trl_reverse_kl(student_hidden, student_head, teacher_hidden, teacher_head):
    """The per-token divergence inside TRL's DistillationTrainer; 1.0 selects KL(student || teacher)."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    pair = student_hidden, student_head, None, teacher_hidden, teacher_head, None
    divergence, _ = ChunkedDivergenceFunction.apply(*pair, 1.0)
    return divergence


def products(student_hidden, student_head, teacher_hidden, teacher_head, mask):
    """The four matrix products nobody avoids, and nothing else."""
    del mask

    def work():
        teacher_logits = teacher_hidden @ teacher_head.T
        student_logits = student_hidden @ student_head.T  # stands for its own gradient, too
        hidden_gradient, head_gradient = student_logits @ student_head, student_logits.T @ student_hidden
        return {}, {"products": (teacher_logits, hidden_gradient, head_gradient)}

    return work


CONTENDERS = {
    "eager": eager,
    "compile": compiled,
    "eager_rows": eager_rows,
    "compile_rows": compiled_rows,
    "trl": trl,
    "trl_verified": trl_verified,
    "products": products,
}


if __name__ == "__main__":
    main()
