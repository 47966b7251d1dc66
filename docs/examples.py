"""Lets the documentation show `Example:` in docstrings as code with its output."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the heading to the one that mkdocstrings knows."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:  # noqa: ANN401 - Griffe's own
        """Change the docstring before it is parsed."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
