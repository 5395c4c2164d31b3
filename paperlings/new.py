"""Starting a new paper: five files that already run, with one example task to replace."""

from __future__ import annotations

from pathlib import Path

from paperlings import catalogue, files, layout, stubs

TEMPLATES = Path(__file__).parent / "templates" / "new"


def new(key: str) -> list[Path]:
    """Make the solution, its .toml, the oracle, the tests and the exercise of `track/paper`;
    returns their paths.

    The paper must be in the catalogue. Raises CatalogueError,
    also where one of the files exists already.
    """
    import jinja2

    track, _, name = key.partition("/")
    if not (track.isidentifier() and name.isidentifier()):
        raise catalogue.CatalogueError(
            f"{key!r} is no track/paper; both are names of Python modules"
        )
    papers = catalogue.load()
    if key not in papers:
        raise catalogue.CatalogueError(
            f"{key} is not in the catalogue yet; add its table to papers.toml first:\n\n"
            f'[{track}.{name}]\ntitle = "..."\nauthors = "..."\nyear = 2026\narxiv = "..."\n'
            'phase = 1\ndifficulty = 3\nhours = 4\nlists = ["roadmap"]\nneeds = []'
        )
    places = {
        "solution.py.j2": layout.source(layout.SOLUTIONS, key),
        "solution.toml.j2": layout.knowledge(key),
        "reference.py.j2": layout.source(layout.REFERENCE, key),
        "test.py.j2": layout.tests(key),
    }
    exercise = layout.source(layout.EXERCISES, key)
    taken = [path for path in [*places.values(), exercise] if path.exists()]
    if taken:
        raise catalogue.CatalogueError(
            f"{layout.shown(taken[0])} exists already; nothing was written"
        )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    texts = {
        path: environment.get_template(t).render(paper=papers[key]) for t, path in places.items()
    }
    texts[exercise] = stubs.stub(texts[layout.source(layout.SOLUTIONS, key)])
    for path, text in texts.items():
        files.write(path, text)
    return list(texts)
