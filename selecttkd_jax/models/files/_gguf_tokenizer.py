"""The tokenizer inside a GGUF file, rebuilt as a Hugging Face tokenizer.

A GGUF file holds vocabulary, merges and token types, and only a name for how text is split before merging.
"""

from pathlib import Path
from typing import Any

from selecttkd_jax._errors import InputError, did_you_mean
from selecttkd_jax._outside_files import shorten, show_name
from selecttkd_jax.models.files._gguf_metadata import Metadata

# How each named rule splits text before byte-level BPE; each matches the pieces to keep apart.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT_RUNS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "qwen2": (_DIGIT_RUNS.format(digits=r"\p{N}"),),
    "llama-bpe": (_DIGIT_RUNS.format(digits=r"\p{N}{1,3}"),),
}
# Vocabularies whose text is put into Unicode normal form C first.
NORMALISED = ("qwen2",)
# Vocabularies in which a piece that is a token as a whole is never built by merging.
WHOLE_PIECES_FIRST = ("llama-bpe",)

CONTROL, USER_DEFINED = 3, 4
SPECIAL_TOKENS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
PREFIX = "tokenizer."
TEMPLATE = "tokenizer.chat_template"
# Keys that are read, keys at the values at which they change nothing, and keys that never do for byte-level BPE.
USED = (
    *SPECIAL_TOKENS.values(),
    TEMPLATE,
    "tokenizer.chat_templates",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
)
NEUTRAL = {
    "tokenizer.ggml.add_eos_token": False,
    "tokenizer.ggml.add_sep_token": False,
    "tokenizer.ggml.remove_extra_whitespaces": False,
}
WITHOUT_EFFECT = frozenset(
    f"tokenizer.{name}"
    for name in """
    huggingface.json rwkv.world ggml.scores ggml.token_type_count ggml.add_space_prefix
    ggml.seperator_token_id ggml.separator_token_id ggml.cls_token_id ggml.mask_token_id
    ggml.fim_pre_token_id ggml.fim_suf_token_id ggml.fim_mid_token_id ggml.fim_pad_token_id ggml.fim_rep_token_id
    ggml.fim_sep_token_id ggml.prefix_token_id ggml.suffix_token_id ggml.middle_token_id
    """.split()
)


def check_tokenizer_keys(metadata: Metadata) -> None:
    """Raises InputError for a key about the tokenizer that is unknown, or has a value that is not followed."""
    known = [*USED, *NEUTRAL, *WITHOUT_EFFECT]
    for name, value in metadata.values.items():
        if not name.startswith(PREFIX) or name.startswith(f"{TEMPLATE}."):
            continue
        if name not in known:
            raise InputError(
                f"{metadata.source}: unknown metadata key {show_name(name)}{did_you_mean(name, known)}; it might "
                "change how text is split: not supported"
            )
        if name in NEUTRAL and value != NEUTRAL[name]:
            raise InputError(f"{metadata.source}: {name} {shorten(value)} is not supported; only {NEUTRAL[name]} is")


def write_tokenizer(metadata: Metadata, directory: Path, max_positions: int) -> None:
    """Writes tokenizer files that `transformers.AutoTokenizer` loads.

    Args:
        metadata: The GGUF file's.
        directory: Where to write.
        max_positions: Longest input of the model, in tokens.

    Raises:
        InputError: If the file has no tokenizer, or one of a kind not known here.
    """
    # Imported here because it takes seconds.
    from transformers import PreTrainedTokenizerFast

    tokens = metadata.get_strings("tokenizer.ggml.tokens")
    if not tokens:
        raise InputError(f"{metadata.source} holds no tokenizer")
    ids = {name: metadata.get_token_id(key) for name, key in SPECIAL_TOKENS.items()}
    special = {name: tokens[index] for name, index in ids.items() if index is not None}
    options: dict[str, Any] = dict(special, model_max_length=max_positions, clean_up_tokenization_spaces=False)
    templates = _read_templates(metadata)
    if templates:
        options["chat_template"] = templates["default"] if templates.keys() == {"default"} else templates
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_byte_level_bpe(metadata, tokens), **options)
    tokenizer.save_pretrained(directory)


def _read_templates(metadata: Metadata) -> dict[str, str]:
    """Chat templates by name; the one without a name is `default`."""
    named = [key for key in metadata.values if key.startswith(f"{TEMPLATE}.")]
    templates = {key.removeprefix(f"{TEMPLATE}."): metadata.get(key, str) for key in named}
    if metadata.get(TEMPLATE, str):
        templates["default"] = metadata.get(TEMPLATE, str)
    for name in templates:
        if not name.isidentifier():
            raise InputError(f"{metadata.source}: {TEMPLATE}.{show_name(name)} is no name of a chat template")
    return templates


def _byte_level_bpe(metadata: Metadata, tokens: list[str]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    source = metadata.source
    kind, rule = metadata.get("tokenizer.ggml.model", str), metadata.get("tokenizer.ggml.pre", str)
    if kind != "gpt2":
        raise InputError(f"{source}: tokenizer model {kind!r} is not supported; only 'gpt2' (byte-level BPE) is")
    if rule is None:
        raise InputError(
            f"{source} does not say how its tokenizer splits text (tokenizer.ggml.pre), as files before May 2024 do "
            "not; convert the model anew"
        )
    if rule not in SPLITS:
        raise InputError(f"{source}: tokenizer rule {rule!r} is not supported; supported are {', '.join(SPLITS)}")
    merges = metadata.get_strings("tokenizer.ggml.merges")
    if not merges:
        raise InputError(f"{source}: its tokenizer has no merges")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocabulary[token] != index)
        raise InputError(f"{source}: the token {shorten(twice)} is there twice")
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if any(part not in vocabulary for part in (left, right, left + right)):
            raise InputError(f"{source}: tokenizer.ggml.merges has {shorten(merge)}, which joins no two tokens to one")
        pairs.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=rule in WHOLE_PIECES_FIRST))
    if rule in NORMALISED:
        tokenizer.normalizer = normalizers.NFC()
    pieces = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in SPLITS[rule]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata.get("tokenizer.ggml.token_type", list, [])
    if types and len(types) != len(tokens):
        raise InputError(f"{source}: tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    for number, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, token_type in zip(tokens, types, strict=False)
            if token_type == number
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    _begin_with_bos(tokenizer, metadata, tokens)
    return tokenizer


def _begin_with_bos(tokenizer: Any, metadata: Metadata, tokens: list[str]) -> None:
    from tokenizers import processors

    if not metadata.get("tokenizer.ggml.add_bos_token", bool, False):
        return
    bos = metadata.get_token_id("tokenizer.ggml.bos_token_id")
    if bos is None:
        raise InputError(
            f"{metadata.source}: tokenizer.ggml.add_bos_token is true, but there is no tokenizer.ggml.bos_token_id"
        )
    token = tokens[bos]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, bos)]
    )
