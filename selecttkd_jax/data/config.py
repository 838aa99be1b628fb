"""Which rows a run learns from, and how they become batches."""

from dataclasses import dataclass

from selecttkd_jax.checks import InputError, check_at_least, check_one_of


@dataclass(frozen=True)
class DataConfig:
    """Training rows, held-out rows, and the shape of a batch."""

    train: str = ""
    """JSONL file, directory saved by `datasets`, or hub name of a data set."""
    held_out: str | None = None
    """Rows to evaluate on, in the same forms. Left out: the last `held_out_rows` of the training data."""
    train_split: str = "train"
    """Split of `train`, where it is a `datasets` data set that has several."""
    held_out_split: str = "test"
    """Split of `held_out`, where it is a `datasets` data set that has several."""
    held_out_rows: int = 64
    """Most rows used for evaluation."""
    columns: tuple[str, str] | None = None
    """Names of the prompt and response columns in raw data, for example: question answer."""
    template: str = "chat"
    """chat (the tokenizer's chat template) or plain (prompt + response + end token, for base models)."""
    max_length: int = 512
    """Tokens in a row, prompt included; longer responses are cut at their end."""
    batch_size: int = 8
    """Rows in a batch, over all devices and micro-batches."""

    def __post_init__(self) -> None:
        if not self.train:
            raise InputError("data.train is missing: name a JSONL file, a saved data set or a hub data set")
        check_one_of("data.template", self.template, ("chat", "plain"))
        check_at_least("data.max_length", self.max_length, 2)
        check_at_least("data.batch_size", self.batch_size, 1)
        check_at_least("data.held_out_rows", self.held_out_rows, 1)
