"""Where in a rendered conversation the assistant speaks.

What a template makes of a message is not its text: templates trim, escape, split at `</think>`, drop the reasoning of
earlier turns, and a user may quote anything. So no message is ever searched for in a rendered text. Instead:

- Every message is rendered once more with *marks*, numbers that occur nowhere else, at its begin and at its end. With
  the marks taken out again this must be the conversation's text, or each message is marked alone and what is in front
  of the mark or behind it must be what it was. Where the marks stood are the ends of the messages, to the character.
- A turn begins where the conversation before it, rendered with the generation prompt, ends: exactly the text that a
  model has in front of it when it answers. Where a template rewrites what came before, the same holds from the end of
  the message before the turn on. Where the generation prompt opens a block that a finished turn does not show
  (`<think>`), a turn begins where the two part, which is found with a mark in place of the answer, so that an answer
  that begins like the generation prompt loses nothing.
- The end-of-turn token comes after the message's end, before the next message's begin.
- A template that marks the model's words itself (`{% generation %}`) is believed; marks tell which words are whose.

A turn that the template writes differently once another one follows (reasoning of earlier turns is often dropped) is
learned as it stands in the whole conversation: every token of a row is in the context in which it will be read.
"""

import os.path
from collections.abc import Callable, Sequence
from typing import NamedTuple

from selecttkd_jax._errors import InputError
from selecttkd_jax.data._marks import Marks
from selecttkd_jax.data._messages import Message

Span = tuple[int, int]
Render = Callable[..., str]

_REWRITTEN = (
    "the chat template writes earlier messages differently once an answer follows, so the answer cannot be found; set "
    "another chat_template in the tokenizer"
)


class Turn(NamedTuple):
    """What a model has to produce in one turn, in characters of the rendered text.

    Attributes:
        message: Which message it is.
        spans: From the first character after the generation prompt to the end of the message's own text; with a
            template's own marks, what these hold.
        text_end: The end of the message's own text; the end-of-turn token comes at or after it.
        limit: Where the next message begins; the end-of-turn token comes before it.
    """

    message: int
    spans: tuple[Span, ...]
    text_end: int
    limit: int


class TurnFinder:
    """Finds the turns of one conversation.

    Args:
        messages: The whole conversation.
        render: `render(messages, add_generation_prompt=False)` gives the text of a conversation.
    """

    def __init__(self, messages: Sequence[Message], render: Render):
        self.messages = messages
        self.text = render(messages)
        self._render = render
        self._marks = Marks(messages, self.text)
        self._marked = [self._marks.mark(index) for index in range(len(messages))]
        self.found = self._marks.read(self._render_or_nothing(self._marked))
        # Not where a template trims, or looks at how a text begins or ends: then each message is marked alone.
        self._exact = self.found.text == self.text
        self._starts: dict[int, int] = {}

    def find(self, index: int) -> Turn:
        """The turn of the assistant's message `index`, in a template that does not mark it."""
        start, end = self.start(index), self._end_of_answer(index)
        limit = self._limit(index)
        if not start <= end <= limit:
            raise InputError(_REWRITTEN)
        return Turn(index, ((start, end),), end, limit)

    def find_marked(
        self, learned: Sequence[int], render_generated: Callable[..., tuple[str, list[Span]]]
    ) -> list[Turn]:
        """The turns of the messages `learned` in a template that marks what the model generates."""
        _, spans = render_generated(self.messages)
        marked, marked_spans = render_generated(self._marked)
        if len(spans) != len(marked_spans):
            raise InputError("the chat template's {% generation %} marks depend on what is said; set another one")
        # Whose each span is: a span without a mark, perhaps an end token alone, belongs to the one before it.
        owners: list[int | None] = []
        for begin, end in marked_spans:
            held = self._marks.read(marked[begin:end]).ends
            owners.append(max(held) if held else owners[-1] if owners else None)
        turns = []
        for index in learned:
            end = self._end_of_answer(index)
            own = tuple(span for span, owner in zip(spans, owners, strict=True) if owner == index)
            if own:  # a template may mark the last answer alone
                later = [span[0] for span, owner in zip(spans, owners, strict=True) if (owner or 0) > index]
                turns.append(Turn(index, own, end, min([self._limit(index, follow=False), *later])))
        if learned and not turns:
            raise InputError("the chat template's {% generation %} marks hold none of the answers; set another one")
        return turns

    def start(self, index: int) -> int:
        """Where turn `index` begins."""
        if index not in self._starts:
            self._starts[index] = self._find_start(index)
        return self._starts[index]

    def end(self, index: int) -> int | None:
        """Where the own text of message `index` ends; None where the template writes nothing of it."""
        if self._exact:
            return self.found.ends.get(index)
        return self._end_alone(index)

    def begin(self, index: int) -> int | None:
        """Where the text of a message that is not the assistant's begins; None where nothing is written of it."""
        if self._exact:
            return self.found.begins.get(index)
        alone = self._render_or_nothing(self._alone(index, end=False))
        before = self._marks.split_before(alone, index)
        if before is not None and not self.text.startswith(before):
            raise InputError(_REWRITTEN)
        return None if before is None else len(before)

    def _end_of_answer(self, index: int) -> int:
        end = self.end(index)
        if end is None:
            raise InputError(
                f"the chat template writes nothing of message {index + 1}, an answer to learn; give it weight 0, or "
                "set a template that does"
            )
        return end

    def _end_alone(self, index: int) -> int | None:
        alone = self._render_or_nothing(self._alone(index, begin=False))
        behind = self._marks.split_behind(alone, index)
        if behind is not None and not self.text.endswith(behind):
            raise InputError(_REWRITTEN)
        return None if behind is None else len(self.text) - len(behind)

    def _find_start(self, index: int) -> int:
        prompt = self._render(self.messages[:index], add_generation_prompt=True)
        if self.text.startswith(prompt):
            return len(prompt)
        # From the end of the message before on, or of the last one that the template writes.
        for anchor in reversed(range(index)):
            marked = self._alone(anchor, begin=False)[:index]
            prompt = self._render_or_nothing(marked, add_generation_prompt=True)
            opening, end = self._marks.split_behind(prompt, anchor), self._end_alone(anchor)
            if opening is not None and end is not None:
                break
        else:
            raise InputError(_REWRITTEN)
        if index == len(self.messages) - 1 and self._marks.read(prompt).text != self.text[:end] + opening:
            # The last turn of a row is what a model will be asked for: after this very text, or never.
            raise InputError(_REWRITTEN)
        if self.text.startswith(opening, end):
            return end + len(opening)
        return end + len(self._shared_opening(index, anchor, opening, end))

    def _shared_opening(self, index: int, anchor: int, opening: str, end: int) -> str:
        """What the finished turn shows of the generation prompt: up to a mark that stands for the answer."""
        marked = self._alone(anchor, begin=False)
        answered = [*marked[:index], self._marks.replace(index), *marked[index + 1 :]]
        header = self._marks.split_between(self._render_or_nothing(answered), anchor, index)
        closing = self._marks.split_behind(self._render_or_nothing(marked[:index]), anchor)
        if header is None or closing is None:
            raise InputError(_REWRITTEN)
        shared = os.path.commonprefix([opening, header, self.text[end : end + len(header)]])
        # What ends the message before must be there in any case, or the user's end token would be the assistant's.
        closed = os.path.commonprefix([opening, closing])
        if not shared.startswith(closed):
            raise InputError(_REWRITTEN)
        return shared

    def _limit(self, index: int, follow: bool = True) -> int:
        """Where the next message begins."""
        for later in range(index + 1, len(self.messages)):
            if self.messages[later]["role"] != "assistant":
                begin = self.begin(later)
                if begin is not None:
                    return begin
            elif follow:
                return self.start(later)
        return len(self.text)

    def _alone(self, index: int, *, begin: bool = True, end: bool = True) -> list[Message]:
        """The conversation with marks in message `index` only."""
        marked = self._marks.mark(index, begin=begin, end=end)
        return [*self.messages[:index], marked, *self.messages[index + 1 :]]

    def _render_or_nothing(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text of changed messages; nothing where the template refuses them."""
        try:
            return self._render(messages, add_generation_prompt=add_generation_prompt)
        except InputError:
            return ""
