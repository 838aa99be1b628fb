"""What sets one family of models apart from another, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """What is a family's own in `config.json` and in GGUF files; all else is read alike for every family.

    What a family computes is said in flags of `DecoderConfig` (`qkv_bias`, `o_bias`, `qk_norm`), and so are the
    parameters it has: a row of the weight table needs a flag, not a family. The same row can be an option of one family
    and a rule of another, and whoever initialises, shards or writes parameters knows the flags and no family.

    Attributes:
        model_type: The family's name in config.json.
        architecture: The class of transformers, which config.json names under `architectures`.
        gguf_architecture: The family's name in GGUF files; empty where they go by another family's.
        always: Flags of `DecoderConfig` that every model of the family has.
        options: Boolean fields of config.json, false where left out, each with the flags of `DecoderConfig` it sets.
        fixed: Fields of config.json that may be left out, each with the only value it may have.
        required: Fields of config.json without a default, because transformers' own is one model's size.
        defaults: Values of fields that may be left out, where they differ between families.
        gguf_pairs_rows: Whether GGUF files hold the rows i and i + E/2 of a query or key head side by side.
    """

    model_type: str
    architecture: str
    gguf_architecture: str = ""
    always: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    gguf_pairs_rows: bool = False
