"""Chat templates of our own that behave like known families, and what each has to make of a conversation.

A family is a template and a function that writes the same conversation by hand, as pieces (text, is it learned): the
oracle of the masks. It is plain Python about roles and texts and knows nothing of rendering, marks or prefixes.
"""

import json

BOS, END = "<|bos|>", "<|im_end|>"
SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    END,
    "<|other_end|>",
    BOS,
    "[INST]",
    "[/INST]",
    "<|user|>",
    "<|assistant|>",
]
# Texts that have gone wrong somewhere, or look as if they might.
PIECES = [
    *("yes", "no", "<", "<|", "<|im", END, "<|im_start|>", "assistant\n", "user\n", "<think", "<think>", "<think>\n"),
    *("</think>", "</think>\n\n", "<think>\n\n</think>\n\n", " ", "\n", "\n\n", "  ", "9", "90", "12345678", "ü", "你"),
    *("[INST]", "[/INST]", " a b ", '"', "\\", "{{ x }}", "{% if %}", "<|user|>", "tool", "</s>", "Sys", "\t", "😀"),
]


def chatml(messages, **_):
    return [
        piece
        for message in messages
        for piece in (
            (f"<|im_start|>{message['role']}\n", False),
            (message["content"] + END, message["role"] == "assistant"),
            ("\n", False),
        )
    ]


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def with_default_system(messages, **_):
    system = [] if messages[0]["role"] == "system" else [{"role": "system", "content": "Be kind."}]
    return chatml([*system, *messages])


DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML
)


def trimming(messages, **_):
    """One that trims, renames the assistant, puts the system text into the first user turn and wants alternation."""
    pieces, system = [(BOS, False)], ""
    if messages[0]["role"] == "system":
        system, messages = messages[0]["content"].strip() + "\n\n", messages[1:]
    for index, message in enumerate(messages):
        learned = message["role"] == "assistant"
        pieces.append((f"<|im_start|>{'model' if learned else 'user'}\n{'' if index else system}", False))
        pieces += [(message["content"].strip() + END, learned), ("\n", False)]
    return pieces


TRIMMING = (
    "{{ '<|bos|>' }}{% if messages[0].role == 'system' %}{% set first = (messages[0].content | trim) + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}"
    "{% endif %}{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ (first if loop.first else '') + (m.content | trim) + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)


def without_prompt(messages, **_):
    """One without a generation prompt: brackets around the user, spaces around the answer."""
    pieces = [(BOS, False)]
    for message in messages:
        if message["role"] == "assistant":
            pieces += [(f" {message['content']} {END}", True)]
        else:
            pieces += [(f"[INST] {message['content']} [/INST]", False)]
    return pieces


WITHOUT_PROMPT = (
    "{{ '<|bos|>' }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + ' <|im_end|>' }}"
    "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
)


def _split_thought(text):
    if "</think>" not in text:
        return "", text
    thought = text.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
    return thought, text.split("</think>")[-1].lstrip("\n")


def forgetting(messages, enable_thinking=True, opened=False, **_):
    """One that shows a thought, perhaps an empty one, only behind the last user message, and drops the others."""
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    pieces = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            pieces.append((f"<|im_start|>{message['role']}\n{message['content']}{END}\n", False))
            continue
        thought, answer = _split_thought(message["content"])
        if message.get("reasoning_content"):
            thought, answer = message["reasoning_content"].strip("\n"), message["content"].lstrip("\n")
        block = f"<think>\n{thought}\n</think>\n\n" if index > last else ""
        pieces.append(("<|im_start|>assistant\n", False))
        prompt = "" if enable_thinking else "<think>\n\n</think>\n\n"
        if opened:
            prompt = "<think>\n"
        # What the prompt has said already is not learned.
        if prompt and (block + answer).startswith(prompt):
            pieces += [(prompt, False), ((block + answer).removeprefix(prompt) + END, True)]
        elif block and prompt:
            pieces += [("<think>\n", False), ((block + answer).removeprefix("<think>\n") + END, True)]
        else:
            pieces.append((block + answer + END, True))
        pieces.append(("\n", False))
    return pieces


FORGETTING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}{% set text = m.content %}"
    "{% set thought = '' %}{% if m.reasoning_content %}{% set thought = m.reasoning_content.strip('\n') %}"
    "{% set text = text.lstrip('\n') %}{% elif '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ text + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
OPENING = FORGETTING.replace(
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}",
    "{{ '<think>\n' }}",
)


def opening(messages, **_):
    return forgetting(messages, opened=True)


def dropping(messages, **_):
    """One that drops the thought of every answer, while its prompt opens one."""
    pieces = [(BOS, False)]
    for message in messages:
        if message["role"] != "assistant":
            pieces.append((("<|user|>" if message["role"] == "user" else "") + message["content"], False))
            continue
        answer = message["content"].split("</think>")[-1]
        given = "<think>\n" if answer.startswith("<think>\n") else ""
        pieces += [("<|assistant|>" + given, False), (answer.removeprefix(given) + END, True)]
    return pieces


DROPPING = (
    "{{ '<|bos|>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>' + m.content.split('</think>')[-1] + '<|im_end|>' }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)


def last_without_end(messages, **_):
    """One that ends every turn but the last."""
    pieces = chatml(messages)
    if messages[-1]["role"] == "assistant":
        pieces[-2:] = [(messages[-1]["content"], True)]
    return pieces


LAST_WITHOUT_END = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% if not (loop.last and m.role == 'assistant') %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def marked(messages, **_):
    """One with marks of its own, around more than the answer: they are followed, and the end token is added."""
    pieces = []
    for message in messages:
        if message["role"] == "assistant":
            pieces += [("<|im_start|>", False), (f"assistant\n{message['content']}{END}", True), ("\n", False)]
        else:
            pieces.append((f"<|im_start|>{message['role']}\n{message['content']}{END}\n", False))
    return pieces


MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>' }}{% generation %}"
    "{{ 'assistant\n' + m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}{% else %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

FAMILIES = {
    "chatml": (CHATML, chatml, {}),
    "default system": (DEFAULT_SYSTEM, with_default_system, {}),
    "trimming": (TRIMMING, trimming, {}),
    "without prompt": (WITHOUT_PROMPT, without_prompt, {}),
    "forgetting": (FORGETTING, forgetting, {}),
    "forgetting, thinking off": (FORGETTING, forgetting, {"enable_thinking": False}),
    "opening": (OPENING, opening, {}),
    "dropping": (DROPPING, dropping, {}),
    "last without end": (LAST_WITHOUT_END, last_without_end, {}),
    "marked": (MARKED, marked, {}),
}

CALLING = (
    "{% if tools %}{{ '<|im_start|>system\nTools: ' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}{% if loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}"
    "{% endif %}{{ '\n<result>' + m.content + '</result>' }}{% if loop.last or loop.nextitem.role != 'tool' %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% else %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    "{% for call in m.tool_calls or [] %}{{ '<call>' + (call.function | tojson) + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def calling(messages, tools=None):
    pieces = [(f"<|im_start|>system\nTools: {json.dumps(tools)}{END}\n", False)] if tools else []
    roles = [message["role"] for message in messages] + [None]
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            first, last = roles[index - 1] != "tool", roles[index + 1] != "tool"
            text = f"\n<result>{message['content']}</result>"
            pieces.append((("<|im_start|>user" if first else "") + text + (f"{END}\n" if last else ""), False))
            continue
        calls = [call["function"] for call in message.get("tool_calls") or []]
        text = "".join(f"<call>{json.dumps(call, ensure_ascii=False)}</call>" for call in calls)
        pieces.append((f"<|im_start|>{message['role']}\n", False))
        pieces += [((message["content"] or "") + text + END, message["role"] == "assistant"), ("\n", False)]
    return pieces
