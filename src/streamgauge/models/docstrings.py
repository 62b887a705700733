"""English prose from the documentation of installed Python packages.

The packages' files are read as text and parsed, never imported. A document is one docstring with
everything left out that is not whole sentences: examples, tables, formulas, directives, names and
types of parameters, lists of references. The order of the documents is fixed by hashes of file
names and texts, so it is the same on every machine with the same versions of the packages.
"""

import ast
import hashlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from streamgauge.base.errors import StreamgaugeError

# packages of the pinned stack whose documentation is written in full sentences
PACKAGES = (
    "matplotlib",
    "networkx",
    "numpy",
    "pandas",
    "scipy",
    "sympy",
    "torch",
    "xarray",
    "zarr",
)
MIN_CHARACTERS = 200  # shorter docstrings repeat the name of what they describe
# files shuffled together: bounds memory, and the work before the first document
FILES_AT_ONCE = 40

_FOREIGN = {"tests", "test", "testing", "_testing", "_vendor", "vendored", "externals", "extern"}
_LEFT_OUT = {"example", "examples", "reference", "references", "see also", "methods", "attributes"}
_UNDERLINE = re.compile(r"([=\-~^*#])\1{2,}\s*$")
_BULLET = re.compile(r"(?:[-*+•]|\(?\w{1,2}[.)])\s+")
_FIELD = re.compile(r":(?:param|type|returns?|rtype|raises?|arg|keyword)\b[^:]*:\s*")
_MARKUP = [
    (re.compile(r":[\w:.+-]+:`[~!.]*([^`<]*?)\s*(?:<[^`]*>)?`"), r"\1"),  # :role:`text <target>`
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?"), r"\1"),  # `text <target>`_
    (re.compile(r"\s*\[[\w#*]+\]_"), ""),  # footnotes
    (re.compile(r"``([^`]*)``"), r"`\1`"),
    (re.compile(r"::$"), ":"),
    (re.compile(r"\s+"), " "),
]
_SENTENCES = re.compile(r"[A-Z].*[.!?][)\"'”]?$", re.S)


def documents() -> Iterator[str]:
    """Every document, once.

    Raises:
        StreamgaugeError: one of `PACKAGES` is not installed.
    """
    files = sorted((_hash(name), path) for package in PACKAGES for name, path in _files(package))
    seen: set[bytes] = set()
    for start in range(0, len(files), FILES_AT_ONCE):
        batch = files[start : start + FILES_AT_ONCE]
        found = {_hash(text): text for _, path in batch for text in _documents_of(path)}
        for key in sorted(found.keys() - seen):
            yield found[key]
        seen |= found.keys()


def prose(docstring: str) -> str:
    """The whole sentences of a docstring: its paragraphs of prose, a blank line between them."""
    kept = (_plain(paragraph) for paragraph in _paragraphs(inspect.cleandoc(docstring)))
    return "\n\n".join(text for text in kept if _is_prose(text))


def _files(package: str) -> Iterator[tuple[str, Path]]:
    """(name below site-packages, path) of every source file of an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise StreamgaugeError(
            f"the Python package {package} is not installed",
            where="corpus python-docs",
            remedy="Install streamgauge with its pinned constraints.",
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    for path in root.rglob("*.py"):
        name = path.relative_to(root.parent)
        if not _FOREIGN & set(name.parts):
            yield name.as_posix(), path


def _documents_of(path: Path) -> Iterator[str]:
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):  # a template, or a file in an encoding of its own
        return
    for docstring in _docstrings(body):
        if len(docstring) >= MIN_CHARACTERS:
            text = prose(docstring)
            if len(text) >= MIN_CHARACTERS:
                yield text


def _docstrings(body: list[ast.stmt]) -> Iterator[str]:
    match body:
        case [ast.Expr(value=ast.Constant(value=str(docstring))), *_]:
            yield docstring
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(node.body)


def _paragraphs(text: str) -> Iterator[str]:
    """Runs of lines with one indentation, of the sections that hold prose.

    Names of parameters stand less far in than their descriptions, so they end up on their own.
    """
    lines = text.split("\n")
    run: list[str] = []
    indent = left_out = 0
    for number, line in enumerate(lines):
        bare = line.strip()
        below = lines[number + 1].strip() if number + 1 < len(lines) else ""
        if bare and _UNDERLINE.match(below) and not _UNDERLINE.match(bare):
            left_out = bare.lower() in _LEFT_OUT
        elif bare.startswith(">>>"):
            left_out = True  # whatever follows an example explains its output
        bullet = _BULLET.match(bare)
        here = len(line) - len(line.lstrip()) + (bullet.end() if bullet else 0)
        if run and (not bare or bullet or here != indent or left_out):
            yield " ".join(run)
            run = []
        if bare and not left_out and not _UNDERLINE.match(bare) and not _UNDERLINE.match(below):
            run.append(bare[bullet.end() :] if bullet else bare)
            indent = here
    if run:
        yield " ".join(run)


def _plain(paragraph: str) -> str:
    paragraph = _FIELD.sub("", paragraph, count=1)
    for pattern, replacement in _MARKUP:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph.strip()


def _is_prose(text: str) -> bool:
    words = text.split()
    letters = sum(character.isalpha() for character in text)
    return (
        len(words) >= 6
        and letters >= 0.85 * (len(text) - len(words) + 1)
        and _SENTENCES.match(text) is not None
    )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()
