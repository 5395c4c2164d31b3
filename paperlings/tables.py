"""The table that the commands on whole papers print: a paper a row, numbers to its right."""

from __future__ import annotations

from typing import Any


def show(headings: list[str], rows: list[list[str]]) -> Any:
    """Print the rows under "paper" and the headings; returns the console for what follows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("paper")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    return console
