"""The tokenizer inside a GGUF file, rebuilt as a Hugging Face tokenizer.

A GGUF file holds vocabulary, merges and token types, and only a name for how text is split before merging.
"""

from pathlib import Path
from typing import Any

from selecttkd_jax.checks import InputError

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


def write_tokenizer(metadata: dict[str, Any], directory: Path, max_positions: int, source: str) -> None:
    """Writes tokenizer files that `transformers.AutoTokenizer` loads.

    Args:
        metadata: the GGUF file's.
        directory: where to write.
        max_positions: longest input of the model, in tokens.
        source: the GGUF file's name, for messages.

    Raises:
        InputError: if the file has no tokenizer, or one of a kind not known here.
    """
    # Imported here because it takes seconds.
    from transformers import PreTrainedTokenizerFast

    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise InputError(f"{source} holds no tokenizer")
    special = {name: tokens[metadata[key]] for name, key in SPECIAL_TOKENS.items() if key in metadata}
    options: dict[str, Any] = dict(special, model_max_length=max_positions, clean_up_tokenization_spaces=False)
    if metadata.get("tokenizer.chat_template"):
        options["chat_template"] = metadata["tokenizer.chat_template"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_byte_level_bpe(metadata, source), **options)
    tokenizer.save_pretrained(directory)


def _byte_level_bpe(metadata: dict[str, Any], source: str) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    kind, rule = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2":
        raise InputError(f"{source}: tokenizer model {kind!r} is not supported; only 'gpt2' (byte-level BPE) is")
    if rule not in SPLITS:
        raise InputError(f"{source}: tokenizer rule {rule!r} is not supported; supported are {', '.join(SPLITS)}")
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.merges")
    if not merges:
        raise InputError(f"{source}: its tokenizer has no merges")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ", 1)) for merge in merges],
            ignore_merges=rule in WHOLE_PIECES_FIRST,
        )
    )
    if rule in NORMALISED:
        tokenizer.normalizer = normalizers.NFC()
    pieces = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in SPLITS[rule]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata.get("tokenizer.ggml.token_type", [])
    for number, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, token_type in zip(tokens, types, strict=False)
            if token_type == number
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    _begin_with_bos(tokenizer, metadata)
    return tokenizer


def _begin_with_bos(tokenizer: Any, metadata: dict[str, Any]) -> None:
    from tokenizers import processors

    if not metadata.get("tokenizer.ggml.add_bos_token"):
        return
    bos = metadata["tokenizer.ggml.bos_token_id"]
    token = metadata["tokenizer.ggml.tokens"][bos]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, bos)]
    )
