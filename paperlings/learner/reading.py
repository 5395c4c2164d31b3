"""Reading a paper in three passes, and the learner's own log of it: my/log/<track>/<paper>.md.

The file is made once, from the paper's citation and four questions. From then on it belongs to the
learner, and nothing here changes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paperlings import UsageError, catalogue, layout
from paperlings.catalogue import Catalogue, CatalogueError, Paper
from paperlings.lines import labelled

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

LOGS = layout.HOME / "my" / "log"
PASSES = ("first", "second", "third")
QUESTIONS = ("problem", "approach", "result", "limitation")
FEWEST, MOST = 3, 5  # sentences of a log

HEADER = """\
# {paper.title}

{paper.authors}, {paper.year}. {paper.identifier}
"""
QUESTIONNAIRE = """
## Passes

- [ ] First, ten minutes: title, abstract, figures, conclusion.
- [ ] Second, an hour: the argument, without the proofs.
- [ ] Third: derive it again, or implement it.

<!-- Below, three to five sentences in all, in your own words.
     One heading may name two of the four questions; add other headings as you like. -->

## Problem

<!-- What could nobody do, or explain, before? -->

## Approach

<!-- What is the one idea? -->

## Result

<!-- What was shown, in numbers, and against what? -->

## Limitation

<!-- Where does it fail, and what was not tried? -->
"""

COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
BOX = re.compile(r"\[([ xX])\](?=\s)")
# where a sentence may end, with the space after it
END = re.compile(r"(?:[.!?\u2026]+[\"')\]\u201d\u2019]*(?=\s|$)\s*|[\u3002\uff01\uff1f])")
# whose full stop ends nothing
SHORT = re.compile(
    r"\b(?:e\.g|i\.e|w\.r\.t|et al|cf|vs|resp|approx|ca|figs?|eqs?|secs?|tab|alg|thm)\.\s*$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Log:
    """A learner's log of one paper, as far as it is written.

    passes: which of the three are ticked.  sentences: in all answers.  empty: the questions
    without an answer.  gone: those whose heading was deleted.
    """

    path: Path
    text: str
    passes: tuple[bool, ...]
    sentences: int
    empty: tuple[str, ...]
    gone: tuple[str, ...]


def log(name: str) -> int:
    """Make the log of a paper where there is none, and say where it is and what is missing;
    returns the exit status.

    Raises CatalogueError for a name that means no paper, or several, UsageError where the file
    cannot be read or written.
    """
    paper = _one(catalogue.load(), name)
    path = path_of(paper.key)
    new = _make(path, HEADER.format(paper=paper) + QUESTIONNAIRE)
    lines = [layout.shown(path) + ", new" * new, *_state(read(path))]
    then = "`nox -s roadmap` collects all logs in reports/portfolio.html"
    print("\n".join([*lines, *labelled("then", then)]))
    return 0


def path_of(key: str) -> Path:
    """Where the log of a paper lies, or would lie."""
    return LOGS / f"{key}.md"


def read(path: Path) -> Log:
    """What a log says. Raises UsageError where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UsageError(f"{layout.shown(path)} cannot be read: {error.strerror}") from None
    passes: list[bool] = []
    answered: dict[str, int] = {}
    sentences = 0
    for heading, blocks in _sections(text):
        if "passes" in heading:
            boxes = (BOX.match(block) for block in blocks)
            passes += [box[1] in "xX" for box in boxes if box]
        questions = [question for question in QUESTIONS if question in heading]
        count = sum(_sentences(block) for block in blocks) if questions else 0
        sentences += count
        for question in questions:
            answered[question] = answered.get(question, 0) + count
    passes = [*passes, *(False for _ in PASSES)][: len(PASSES)]
    return Log(
        path,
        text,
        tuple(passes),
        sentences,
        tuple(question for question in QUESTIONS if not answered.get(question)),
        tuple(question for question in QUESTIONS if question not in answered),
    )


def as_html(log: Log, paper: Paper) -> str:
    """The log as HTML, without its title and citation; whatever HTML it holds is shown as text."""
    text = log.text.replace(HEADER.format(paper=paper), "", 1)
    text = BOX.sub(lambda box: "\u2610" if box[1] == " " else "\u2611", COMMENT.sub("", text))
    parser = _parser()
    tokens = parser.parse(text)
    for token in tokens:
        if token.type.startswith("heading"):  # below the headings of the page
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
    return str(parser.renderer.render(tokens, parser.options, {}))


def _one(papers: Catalogue, name: str) -> Paper:
    """The paper that a name means, written or not; a kernel has the log of its paper."""
    found = papers.select([name])
    found = [paper for paper in found if not layout.is_kernel(paper.key)] or found
    if len(found) > 1:
        keys = ", ".join(paper.key for paper in found)
        raise CatalogueError(f"{name!r} means {len(found)} papers; name one of {keys}")
    return _one(papers, found[0].needs[0]) if layout.is_kernel(found[0].key) else found[0]


def _make(path: Path, text: str) -> bool:
    """Write the file if there is none, and say whether there was none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:  # fails where there is one
            file.write(text)
    except FileExistsError:
        return False
    except OSError as error:
        raise UsageError(f"{layout.shown(path)} cannot be written: {error.strerror}") from None
    return True


def _state(log: Log) -> list[str]:
    """What is done and what is missing, in lines for the terminal."""
    ticked = [name for name, done in zip(PASSES, log.passes, strict=True) if done]
    lines = labelled("passes", f"{', '.join(ticked) or 'none'} of three ticked")
    empty = [f"{q} (its heading is gone)" if q in log.gone else q for q in log.empty]
    if empty:
        lines += labelled("still empty", ", ".join(empty))
    advice = f"; {FEWEST} to {MOST} are wanted"
    if log.sentences > MOST:
        advice += ": what can go?"
    elif not log.empty and log.sentences >= FEWEST:
        advice = ""
    lines += labelled("sentences", f"{log.sentences}{advice}")
    return lines


def _sections(text: str) -> list[tuple[str, list[str]]]:
    """Every heading in small letters, and the plain text of each paragraph below it."""
    found: list[tuple[str, list[str]]] = [("", [])]
    opened = ""
    for token in _parser().parse(COMMENT.sub("", text)):
        if token.type.endswith("_open"):
            opened = token.type
        elif token.type == "inline" and opened == "heading_open":
            found.append((_plain(token).casefold(), []))
        elif token.type == "inline":
            found[-1][1].append(_plain(token))
    return found


def _plain(token: Token) -> str:
    """The words of a paragraph; code counts as one word, whatever it is."""
    words = {"code_inline": "code", "softbreak": " ", "hardbreak": " "}
    return "".join(words.get(part.type, part.content) for part in token.children or []).strip()


def _sentences(text: str) -> int:
    """How many sentences there are; what has no full stop, such as a bullet point, is one too."""
    starts = [0]
    for end in END.finditer(text):
        after = text[end.end() : end.end() + 1]
        if not after.islower() and not SHORT.search(text[starts[-1] : end.end()]):
            starts.append(end.end())
    parts = (text[i:j] for i, j in zip(starts, [*starts[1:], len(text)], strict=True))
    return sum(bool(re.search(r"\w", part)) for part in parts)


def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    # nothing of the learner's is run, and no picture fetched
    return MarkdownIt("commonmark", {"html": False}).disable("image")
