"""Questions for the demo's models, none of them in their training data, and a plain rule that judges the answers.

Of 28 candidates, twelve to which the teacher, of 135 M parameters in four bits, has an answer; they were chosen before
a student had been asked.

An answer is `broken` where it is empty, not words, or says the same over and over. Otherwise it is `right` where it
holds what is asked for, and `wrong` where it does not; for a question without one answer that is any of some words
that an answer to it can hardly do without. The rule reads no further: an answer that is right in its first sentence may
go on to nonsense, so look at the answers, too.
"""

import re

QUESTIONS = {
    "What is the capital of France?": "Paris",
    "How many days are in a week?": "7|seven",
    "What color is the sky on a clear day?": "blue",
    "What is the opposite of hot?": "cold|cool",
    "What is the capital of Japan?": "Tokyo",
    "What is the chemical formula of water?": "H2O|H₂O",
    "Write one sentence about a dog.": r"\bdogs?\b",
    "Name three fruits.": "apple|banana|orange|grape|berr|mango|peach|pear|lemon",
    "Describe the ocean in one sentence.": "ocean|sea|water",
    "Why should I drink water every day?": "hydrat|health|body",
    "Give me three tips for staying healthy.": "sleep|exercise|eat|diet|hydrated",
    "What is a computer?": "machine|device|system|tool|program|electronic",
}
"""Each question, and what an answer to it has to match."""

REPEATED = 0.6  # three words in a row that stood before already: an answer in which so few are new runs in circles


def judge(question: str, answer: str) -> str:
    """`right`, `wrong` or `broken`.

    Example:
        >>> judge("What is the capital of France?", "The capital of the capital of the capital of the capital of Paris")
        'broken'
    """
    words = re.findall(r"[a-z']+|\d+", answer.lower())
    letters = sum(map(len, words)) / max(len(answer.replace(" ", "")), 1)
    longest = max(map(len, words), default=0)
    if not words or letters < 0.5 or longest > 24 or _share_of_new(words) < REPEATED:
        return "broken"
    return "right" if re.search(QUESTIONS[question], answer, re.IGNORECASE | re.DOTALL) else "wrong"


def count_right(answers: dict[str, str]) -> int:
    """How many of the answers, by question, are right."""
    return sum(judge(question, answer) == "right" for question, answer in answers.items())


def _share_of_new(words: list[str]) -> float:
    """Of all three words in a row, the share that is different (distinct-3)."""
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(triples)) / len(triples) if triples else 1.0
