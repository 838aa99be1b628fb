"""The two tokenizers most tests need."""

import pytest
from small_tokenizers import build_tokenizer


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory):
    """ChatML without `{% generation %}`; its pad token is its end token."""
    return build_tokenizer(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def base_tokenizer(tmp_path_factory):
    """A base model's tokenizer: no chat template, a begin token in front of every text."""
    return build_tokenizer(
        tmp_path_factory.mktemp("base"),
        chat_template=None,
        eos_token="<|endoftext|>",
        bos_token="<|im_start|>",
        pad_token="<|endoftext|>",
        begin="<|im_start|>",
    )
