"""TRL's GKDTrainer, off-policy, on the batches of the step race.

    python step_trl.py DIRECTORY [--gradient-checkpointing]

The trainer's own loop runs; it waits for its turn where a step begins and answers where the step ends.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import transformers
import trl
from channel import Channel
from datasets import Dataset
from torch.utils.data import DataLoader
from torch_models import load_batches, load_models
from transformers import AutoTokenizer, TrainerCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer

IGNORED = -100


class Trainer(GKDTrainer):
    """GKDTrainer that takes ready batches in their order and remembers its last loss."""

    batches: list[dict[str, torch.Tensor]]
    last_loss: torch.Tensor

    def get_train_dataloader(self):
        """The batches, in place of those it would make from its data set."""
        return DataLoader(self.batches, batch_size=None)

    def compute_loss(self, *arguments, **options):
        """TRL's own."""
        self.last_loss = super().compute_loss(*arguments, **options)
        return self.last_loss


class TakesTurns(TrainerCallback):
    """Holds the trainer's loop until it is its turn."""

    def __init__(self, channel: Channel):
        self.channel = channel
        self.trainer: Trainer | None = None

    def on_step_begin(self, args, state, control, **rest):
        """Waits; leaves when the race is over."""
        if not self.channel.next_turn():
            raise SystemExit(0)

    def on_step_end(self, args, state, control, **rest):
        """The optimizer has stepped."""
        self.channel.report(loss=self.trainer.last_loss.item())


def main():
    """Loads, then serves the trainer's steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--gradient-checkpointing", action="store_true", help="TRL's default; slower, leaner")
    options = parser.parse_args()
    channel = Channel()
    teacher, student = load_models(options.directory)
    batches = [with_labels(inputs, mask) for inputs, mask in load_batches(options.directory)]
    turns = TakesTurns(channel)
    with tempfile.TemporaryDirectory() as output:
        config = GKDConfig(
            output_dir=output,
            max_steps=len(batches) + 1,  # one more than there are turns: after its last step it would clean up
            per_device_train_batch_size=len(batches[0]["input_ids"]),
            lmbda=0.0,  # never on-policy
            beta=0.0,  # KL(teacher || student)
            learning_rate=3e-4,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            adam_epsilon=1e-8,
            weight_decay=0.0,
            max_grad_norm=0.0,
            gradient_checkpointing=options.gradient_checkpointing,
            use_cpu=True,
            bf16=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=student,
            teacher_model=teacher,
            args=config,
            train_dataset=Dataset.from_dict({"number": list(range(len(batches)))}),  # asked for, and not read
            processing_class=AutoTokenizer.from_pretrained(options.directory / "teacher"),
            data_collator=lambda batch: batch,
            callbacks=[turns],
        )
        turns.trainer, trainer.batches = trainer, batches + batches[:1]
        names = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
        versions = ", ".join(f"{name} {version}" for name, version in names.items())
        channel.ready(versions=versions, threads=torch.get_num_threads())
        trainer.train()


def with_labels(inputs, mask):
    """TRL shifts by itself: a label stands at its own token's place, one after the position that predicts it."""
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    labels[:, 1:] = torch.where(mask[:, :-1], inputs["input_ids"][:, 1:], IGNORED)
    return {**inputs, "labels": labels}


if __name__ == "__main__":
    main()
