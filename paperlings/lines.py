"""What is said to a person in a terminal: text in lines that fit, and what is going on."""

from __future__ import annotations

import textwrap
from typing import Any

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


def waiting(what: str) -> Any:
    """A context that says in a terminal what goes on, until it is over."""
    from rich.console import Console

    return Console(stderr=True).status(f"{what} ...")
