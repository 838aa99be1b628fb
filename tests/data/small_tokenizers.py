"""Small tokenizers built on the spot: no network, no files in the repository."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SENTENCES = [
    "What is the capital of France? The capital of France is Paris.",
    "How many eggs does the hen lay? She lays seven eggs a day.",
    "user assistant system\n tell me a short story about a small red boat\n",
    "Thank you! You are welcome, goodbye.",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|other_end|>"]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
    " + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{'<|im_start|>assistant\n'}}"
    "{% generation %}{{ message['content'] }}{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer(directory, *, specials=SPECIALS, sentences=SENTENCES, vocab_size=400, begin=None, **options):
    """A byte-level BPE tokenizer saved to and loaded from `directory`, as a user's would be."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
        ),
    )
    if begin:
        core.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, core.token_to_id(begin))]
        )
    options = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": CHATML, **options}
    PreTrainedTokenizerFast(tokenizer_object=core, **options).save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)
