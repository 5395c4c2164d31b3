"""The HTML pages: one look, one file each, with nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import functools
from pathlib import Path
from typing import Any


def render(template: str, **values: Any) -> str:
    """The page that a template of paperlings/templates makes of `values`."""
    text: str = _environment().get_template(template).render(**values)
    return text


@functools.cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def inside(picture: Path) -> str:
    """A PNG file as an address that carries the picture itself."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
