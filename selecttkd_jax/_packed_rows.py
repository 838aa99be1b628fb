"""How many texts share a sequence at most: packing keeps to it, and an attention kernel makes room for so many."""

# Rows that hold less are rare where a sequence holds several; a kernel's work on texts that are not there is not free.
_TOKENS_A_TEXT = 128
_AT_LEAST = 16


def most_texts(length: int) -> int:
    """The most texts in a sequence of `length` tokens: one for 128, and 16 in a short one.

    Example:
        >>> most_texts(512), most_texts(8192)
        (16, 64)
    """
    return max(_AT_LEAST, length // _TOKENS_A_TEXT)
