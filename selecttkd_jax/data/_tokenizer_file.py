"""Whether a loaded tokenizer is the one on disk: the same ids as `tokenizers` gives, reading tokenizer.json itself.

transformers chooses a class by config.json and tokenizer_config.json, and some classes build the splitting of text anew
from the vocabulary. Whoever reads tokenizer.json (llama.cpp, text-generation-inference, the model's own training) then
gets other ids for the same text, and no message.
"""

from pathlib import Path
from typing import Any

from selecttkd_jax._outside_files import reading, shorten

# What tokenizers differ in: runs of spaces, digits, code, contractions, scripts, accents apart from their letters,
# what normalisation changes, and characters outside of the basic plane.
PROBES = (
    "Hello world, it's  two   spaces,\tone tab.\n\nAnd a new line \n  with spaces around. ",
    " 0 12 345 6789 123456789 3.14159 1,000,000 2024-05-06 0x1F",
    "def f(x):\n    return x[0] != 'a'  # comment\n\tif (a && b) { c->d += 1; }\n",
    "don't WE'LL I'm They'VE it’s",
    "Grüße aus Köln, naïve cafe\u0301 Åse, Ελληνικά, Привет мир, 你好世界。こんにちは 한국어 हिन्दी العربية עברית ไทย",
    "😀👩‍👩‍👧 … — «» ½ ² ﬁ \u00a0\u200b\u3000x",
)
MOST_ADDED = 64


def read_tokenizer_file(path: Path) -> Any:
    """The tokenizer that tokenizer.json describes, of the library `tokenizers`.

    Raises:
        InputError: It cannot be read.
    """
    from tokenizers import Tokenizer

    with reading(path):
        tokenizer = Tokenizer.from_file(str(path))
        # Settings of one call that some writers leave in the file; the loaded tokenizer sets them with each call.
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


def find_difference(tokenizer: Any, from_file: Any) -> str | None:
    """A text to which the two give different ids, or a token that only one has, in words; None where they agree.

    Args:
        tokenizer: As loaded by `transformers`.
        from_file: As `read_tokenizer_file` gives it.
    """
    loaded = tokenizer.get_vocab()
    # What the loaded one has on top, tokenizer_config.json adds.
    for token, index in from_file.get_vocab(with_added_tokens=True).items():
        if loaded.get(token) != index:
            return f"{shorten(token)} is id {index} there and {loaded.get(token)} as loaded"
    for text in (*PROBES, *_texts_with(_added_tokens(from_file))):
        expected = from_file.encode(text, add_special_tokens=False).ids
        given = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if given != expected:
            place = next((i for i, (a, b) in enumerate(zip(given, expected, strict=False)) if a != b), len(expected))
            around = shorten(from_file.decode(expected[max(place - 3, 0) : place + 4], skip_special_tokens=False))
            return f"{around} has {len(expected)} ids there and {len(given)}, others, as loaded"
    return None


def _added_tokens(from_file: Any) -> list[str]:
    added = [entry.content for _, entry in sorted(from_file.get_added_tokens_decoder().items())]
    return added if len(added) <= MOST_ADDED else added[: MOST_ADDED // 2] + added[-MOST_ADDED // 2 :]


def _texts_with(added: list[str]) -> list[str]:
    return [f"a{token}b {token} c\n{token}\n" for token in added]
