"""The code that an artifact depends on, definition by definition, as digests.

A *definition* is what a module binds at its top level: a function, a class, an assigned name, or
the whole ``if``, ``try``, ``with`` or ``for`` statement that binds one. `closure` begins at entry
points, follows every name that a reached definition reads, through imports and re-exports, and
hashes what it reaches, module by module. The sources are parsed; nothing is imported.

- A class counts as a whole; a module that is passed around counts with all its definitions.
- What a module does when it is imported (calls, ``x.y = ...``, ``x[y] = ...`` at its top level)
  counts when anything of the module, or below the package, is reached. What a script does at its
  top level is how it is started, and does not count.
- Of the packages `TRANSPORT`, which move bytes or talk, nothing is followed: their ``FORMAT``
  stands for their code. Only what `stores` calls in other packages counts.
- Wording does not count and is not followed: docstrings, annotations, ``print`` to the terminal,
  what exceptions are raised with, messages of ``assert``, the words given to ``warnings.warn`` and
  to what is in `base` (progress, errors), and functions that only make a `StreamgaugeError`.
- An import counts as what it names: neither its place nor its alias does.

Only names are followed. Not seen is what is found at run time: attributes and modules by a computed
name, what a decorator registers, and the methods of an object that a caller passes in; what makes
such an object must be an entry of its own.

The digests are the same under every Python from 3.11 on.
"""

import ast
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from streamgauge.artifacts.code_text import (
    DEFINED,
    PACKAGE,
    Scope,
    Target,
    Writer,
    is_constant,
    last_name,
    transport,
)
from streamgauge.base.errors import StreamgaugeError


def closure(
    entries: Sequence[str], *, root: Path | str | None = None, source: Path | str | None = None
) -> dict[str, str]:
    """Digests of the code that `entries` reach.

    Args:
        entries: ``"streamgauge.package.module:name"``, or ``"path/to/script.py:function"``.
        root: the folder below which the paths of scripts lie; None for the working directory.
        source: the folder of the package ``streamgauge``; None for the one of this module.

    Returns:
        Dotted module, or path of a script as given -> first 12 hex digits of the sha256 of its
        reached definitions; ``"streamgauge.<package>"`` -> its ``FORMAT``, for transport.

    Raises:
        StreamgaugeError: an entry names no definition; a file is not valid Python.
    """
    library, targets = _open(entries, root, source)
    reached: dict[str, list[str]] = {}
    for module, name in sorted(library.reach(targets)):
        reached.setdefault(transport(module) or module, []).append(name)
    found = {}
    for module, names in sorted(reached.items()):
        if transport(module):
            found |= library.format(module)
        else:
            lines = "".join(f"{name} {library.definition(module, name)[0]}\n" for name in names)
            found[module] = hashlib.sha256(lines.encode()).hexdigest()[:12]
    return found


def definitions(
    entries: Sequence[str], *, root: Path | str | None = None, source: Path | str | None = None
) -> set[str]:
    """Every ``"module:name"`` that `entries` reach; ``"module:"`` is what importing it does.

    Of transport, those that other code names. Arguments and errors as for `closure`.
    """
    library, targets = _open(entries, root, source)
    return {f"{module}:{name}" for module, name in library.reach(targets)}


class _File(NamedTuple):
    """A source file as it was found."""

    module: str
    path: str
    changed: int
    size: int


def _open(entries, root, source) -> tuple["_Library", list[Target]]:
    source = str(source or Path(__file__).resolve().parents[1])
    library = _library(tuple(sorted(_scan(source, PACKAGE))))
    targets = []
    for entry in entries:
        place, _, name = entry.rpartition(":")
        if place.endswith(".py"):
            library.files.pop(place, None)
            script = Path(root or "", place)
            if script.is_file():
                found = script.stat()
                library.files[place] = _File(place, str(script), found.st_mtime_ns, found.st_size)
        target = library.attribute(place, name) if place in library.files else None
        if not (target and target.own and target.name):
            raise StreamgaugeError("there is no such definition", where=entry)
        targets.append(target)
    return library, targets


def _scan(folder: str, package: str) -> Iterator[_File]:
    entries = list(os.scandir(folder))
    if "__init__.py" not in (entry.name for entry in entries):
        yield _File(package, os.path.join(folder, "__init__.py"), 0, 0)  # an empty one
    for entry in entries:
        stem, suffix = os.path.splitext(entry.name)
        if suffix == ".py":
            found = entry.stat()
            module = package if stem == "__init__" else f"{package}.{stem}"
            yield _File(module, entry.path, found.st_mtime_ns, found.st_size)
        elif entry.is_dir() and stem != "__pycache__":
            yield from _scan(entry.path, f"{package}.{stem}")


@functools.lru_cache(maxsize=4)
def _library(files: tuple[_File, ...]) -> "_Library":
    return _Library(files)


class _Library:
    """The modules of one state of the sources, and where their names lead."""

    def __init__(self, files: Iterable[_File]):
        self.files = {file.module: file for file in files}
        self._definitions: dict[tuple[_File, str], tuple[str, frozenset[Target]]] = {}

    def reach(self, targets: Iterable[Target]) -> set[tuple[str, str]]:
        """(module, name) of every definition that `targets` lead to."""
        queue, seen = list(targets), set()
        while queue:
            target = queue.pop()
            if target in seen or not target.own:
                continue
            seen.add(target)
            module, name = target.module, target.name
            if name is None:  # all that it defines or hands on, but not the modules it imports
                inside = (self.attribute(module, bound) for bound in self._module(module).bound)
                queue += [found for found in inside if found and found.name]
            elif transport(module) in (None, "streamgauge.stores"):  # which calls `numerics`
                queue += self.definition(module, name)[1]
                parts = [module] if module.endswith(".py") else module.split(".")
                above = [".".join(parts[: i + 1]) for i in range(len(parts))]
                queue += [Target(m, "") for m in above if self.definition(m, "")[0]]
        return {(target.module, target.name) for target in seen if target.name is not None}

    def definition(self, module: str, name: str) -> tuple[str, frozenset[Target]]:
        """Digest of a definition, or of what a module does (no name), and what it reads."""
        key = (self.files[module], name)
        if key not in self._definitions:
            held = self._module(module)
            writer = Writer(self, held)
            text = "".join(map(writer.text, held.bound[name] if name else held.actions))
            digest = text and hashlib.sha256(text.encode()).hexdigest()
            self._definitions[key] = digest, frozenset(writer.reads)
        return self._definitions[key]

    def attribute(self, module: str, name: str, passed: frozenset = frozenset()) -> Target | None:
        """What ``module.name`` stands for; `passed` are the re-exports that led here."""
        held = self._module(module)
        # a package that imports its module `name` binds just that name
        if name in held.bound and (module, name) not in passed:
            what = held.imported.get(name)
            return self.imported(what, passed | {(module, name)}) if what else Target(module, name)
        if f"{module}.{name}" in self.files:
            return Target(f"{module}.{name}")
        stars = (self.attribute(star, name, passed) for star in held.stars if star in self.files)
        return next(filter(None, stars), None)

    def imported(self, what: tuple[str, str | None], passed: frozenset = frozenset()) -> Target:
        """What ``import module`` (no name) or ``from module import name`` gives."""
        module, name = what
        found = None
        if module in self.files:
            found = self.attribute(module, name, passed) if name else Target(module)
        return found or Target(f"{module}.{name}" if name else module, own=False)

    def walk(self, target: Target, attributes: list[str]) -> tuple[Target, str]:
        """Where `attributes` lead from `target`, and as text those that are left there."""
        while attributes and target.own and target.name is None:
            inner = self.attribute(target.module, attributes[0])
            if inner is None:
                break
            target, attributes = inner, attributes[1:]
        return target, "".join(f".{name}" for name in attributes)

    def format(self, package: str) -> dict[str, str]:
        """package -> its ``FORMAT``; empty where it has none."""
        found = self._module(package).bound.get("FORMAT")
        return {package: str(ast.literal_eval(found[-1].value))} if found else {}

    def only_words(self, target: Target) -> bool:
        """Whether a definition is a function that only makes an error."""
        if not (target.own and target.name):
            return False
        held = self._module(target.module)
        return all(Writer(self, held).only_words(node) for node in held.bound[target.name])

    def _module(self, name: str) -> "_Module":
        return _module(self.files[name])


@functools.lru_cache(maxsize=1024)
def _module(file: _File) -> "_Module":
    try:
        tree = ast.parse(Path(file.path).read_bytes() if file.size else b"")
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte
        line, problem = getattr(error, "lineno", None), getattr(error, "msg", error)
        raise StreamgaugeError(
            f"not valid Python (line {line}: {problem})",
            where=file.path,
            remedy="Mend the file; artifacts depend on its code.",
        ) from None
    return _Module(file, tree)


class _Module:
    """The top level of a module.

    Attributes:
        name: dotted, or the path of a script.
        bound: name -> the statements that bind it.
        imported: name -> (module, name or None), for names that are nothing but one import.
        actions: the statements that do more than to bind names; of a script, none.
        stars: the modules of which it imports every name.
    """

    def __init__(self, file: _File, tree: ast.Module):
        self.name, self.package = file.module, file.module
        if Path(file.path).stem != "__init__":
            self.package = self.name.rpartition(".")[0]
        self.bound: dict[str, list[ast.stmt]] = {}
        self.actions: list[ast.stmt] = []
        self.stars: list[str] = []
        imported: dict[str, set] = {}
        for statement in tree.body:
            scope = Scope(self.package, [statement])
            self.stars += [module for module, _ in scope.imports.pop("*", ())]
            names = scope.names | scope.imports.keys()
            if isinstance(statement, DEFINED):  # a function may set names of its module
                inside = (node for node in ast.walk(statement) if isinstance(node, ast.Global))
                names = names.union(*(node.names for node in inside))
            plain = isinstance(statement, ast.Import | ast.ImportFrom)
            for name in names:
                self.bound.setdefault(name, []).append(statement)
                imported.setdefault(name, set()).update(scope.imports[name] if plain else [None])
            if not self.name.endswith(".py") and _acts(statement):
                self.actions.append(statement)
        single = ((name, *what) for name, what in imported.items() if len(what) == 1)
        self.imported = {name: what for name, what in single if what}


def _acts(node: ast.AST) -> bool:
    """Whether a statement of a module's top level does more than to bind names."""
    if isinstance(node, (*DEFINED, ast.Lambda)):
        return False
    if isinstance(node, ast.Expr):
        return not is_constant(node)
    if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
        return True
    if isinstance(node, ast.If) and "__name__" in map(last_name, ast.walk(node.test)):
        return False  # if __name__ == "__main__"
    return any(map(_acts, ast.iter_child_nodes(node)))
