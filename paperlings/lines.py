"""Text in lines that fit a terminal."""

from __future__ import annotations

import textwrap

from paperlings.verdict import LABEL, WIDTH


def wrapped(text: str, lead: str = "") -> list[str]:
    """`text` in lines that fit, `lead` before the first and as much space before the others."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
    )


def labelled(label: str, text: str) -> list[str]:
    """`label` in the column that a verdict's labels have, and `text` wrapped beside it."""
    return wrapped(text, f"  {label:<{LABEL}}")
