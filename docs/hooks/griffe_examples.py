"""What the docstrings of this library mean where mkdocstrings reads otherwise: an `Example:` is one of `Examples:`."""

import re

from griffe import Extension


class Examples(Extension):
    """Lets doctests under `Example:` be shown as code; Google's section is named in the plural."""

    def on_object(self, *, obj, loader, **kwargs):
        """Called for each function, class, attribute and module that is read."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
