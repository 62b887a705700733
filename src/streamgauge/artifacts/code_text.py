"""One definition of a module's, written as text that every Python writes alike.

What the text leaves out, and what a name in it stands for, is said in `code`.
"""

import ast
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

PACKAGE = "streamgauge"
TRANSPORT = tuple(
    f"{PACKAGE}.{name}" for name in ("base", "stores", "artifacts", "planning", "cli")
)

_ERROR = f"{PACKAGE}.base:StreamgaugeError"
_TALKING = (f"{PACKAGE}.base:", "warnings.warn")
_NEVER = {"NoReturn", "Never", "StreamgaugeError"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINED = (*_FUNCTIONS, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# annotations, what follows from other fields, and what only some Pythons write
_IGNORED = {"annotation", "returns", "type_params", "type_comment", "ctx", "kind", "simple"}


class Target(NamedTuple):
    """What a name stands for: a definition of a module, or a module (`name` is None)."""

    module: str
    name: str | None = None
    own: bool = True  # of the library or a script, not of another library


def transport(module: str) -> str | None:
    """The package of transport that a module belongs to."""
    return next((p for p in TRANSPORT if module == p or module.startswith(f"{p}.")), None)


def is_constant(node: ast.AST) -> bool:
    """Whether a statement is a docstring or the like."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def last_name(node: ast.AST | None) -> str | None:
    """``c`` of ``a.b.c``, of ``c`` and of ``"c"``."""
    for field in ("attr", "id", "value"):
        if isinstance(getattr(node, field, None), str):
            return getattr(node, field)
    return None


class Scope:
    """The names of a function, a class, a comprehension, or statements of a module.

    Attributes:
        names: bound there; those of scopes inside are not.
        imports: name -> what imports there bind it to, each (module, name or None).
        free: names that are declared ``global``.
    """

    def __init__(self, package: str, nodes: Iterable = (), names: Iterable = (), is_class=False):
        self.names, self.is_class, self._package = set(names), is_class, package
        self.imports: dict[str, list[tuple[str, str | None]]] = {}
        self.free: set[str] = set()
        self._outer: set[str] = set()
        for node in nodes:
            self.add(node)

    def add(self, node: ast.AST, in_comprehension: bool = False) -> None:
        """Take up what `node` binds."""
        kind, inside = type(node), ast.iter_child_nodes(node)
        if kind is ast.Name:
            if type(node.ctx) is not ast.Load and not in_comprehension:
                self._bind(node.id)
        elif kind is ast.NamedExpr:
            self._bind(node.target.id)  # from within a comprehension, too
        elif kind in DEFINED:
            self._bind(node.name)
            inside = _around(node)
        elif kind is ast.Lambda:
            inside = _around(node)
        elif kind in (ast.ExceptHandler, ast.MatchAs, ast.MatchStar):
            self._bind(node.name)
        elif kind is ast.MatchMapping:
            self._bind(node.rest)
        elif kind is ast.Global:
            self.free.update(node.names)
        elif kind is ast.Nonlocal:
            self._outer.update(node.names)
        elif kind in (ast.Import, ast.ImportFrom):
            for name, what in _imports(node, self._package):
                self.imports.setdefault(name, []).append(what)
        in_comprehension = in_comprehension or kind in _COMPREHENSIONS
        for child in inside:
            self.add(child, in_comprehension)

    def _bind(self, name: str | None) -> None:
        if name and name not in self._outer:
            self.names.add(name)


def _around(node) -> Iterator[ast.AST]:
    """What of a function, a class or a lambda is evaluated in the scope where it stands."""
    yield from getattr(node, "decorator_list", ())
    if isinstance(node, ast.ClassDef):
        yield from (*node.bases, *node.keywords)
    else:
        yield from filter(None, (*node.args.defaults, *node.args.kw_defaults))


def _imports(node, package: str) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """Each name that an import binds, with (module, name or None)."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            root = alias.name.split(".")[0]
            yield (alias.asname, (alias.name, None)) if alias.asname else (root, (root, None))
        return
    parts = package.split(".")
    parts = parts[: len(parts) + 1 - node.level] if node.level else []
    module = ".".join([*parts, *filter(None, [node.module])])
    for alias in node.names:
        yield alias.asname or alias.name, (module, alias.name)


class Writer:
    """Writes a definition as text, and notes what it reads of the library.

    The text is the syntax tree without what does not count; a name that leads out of the definition
    is written as what it stands for. What does not count at all gives no text.
    """

    def __init__(self, library, module):
        self.reads: set[Target] = set()
        self._library, self._module = library, module
        self._scopes: list[Scope] = []

    def text(self, node: Any) -> str:
        """The text of a node, a list of nodes, or a plain value in one."""
        if isinstance(node, ast.AST):
            special = self._SPECIAL.get(type(node))
            return special(self, node) if special else self._fields(node)
        if isinstance(node, list):
            return f"[{','.join(filter(None, map(self.text, node)))}]"
        return _value(node)

    def only_words(self, node: ast.stmt) -> bool:
        """Whether a statement is a function that only makes an error."""
        if not isinstance(node, _FUNCTIONS):
            return False
        if last_name(node.returns) in _NEVER:
            return True
        body = [one for one in node.body if not is_constant(one)]
        return bool(body) and all(
            isinstance(one, ast.Raise | ast.Return)
            and isinstance(made := one.exc if isinstance(one, ast.Raise) else one.value, ast.Call)
            and self._called(made) == [_ERROR]
            for one in body
        )

    def _fields(self, node: ast.AST, *without: str) -> str:
        parts = []
        for name in node._fields:
            value = getattr(node, name, None)
            if name not in _IGNORED and name not in without and value is not None and value != []:
                parts.append(f"{name}={self.text(value)}")
        return f"{type(node).__name__}({','.join(parts)})"

    def _inside(self, scope: Scope, nodes: Any) -> str:
        self._scopes.append(scope)
        try:
            return self.text(nodes)
        finally:
            self._scopes.pop()

    # names

    def _lookup(self, name: str) -> list[Target] | None:
        """What a name stands for: nothing for a builtin, None for a local variable."""
        for depth, scope in enumerate(reversed(self._scopes)):
            if scope.is_class and depth:
                continue  # functions in a class do not see its names
            if name in scope.free:
                break
            if name in scope.imports:
                return [self._library.imported(what) for what in scope.imports[name]]
            if name in scope.names:
                return None
        found = self._library.attribute(self._module.name, name)
        return [found] if found else []

    def _resolve(self, node: ast.AST) -> list[tuple[Target, str]] | None:
        """What a dotted name stands for, each with what is left of it; None as for `_lookup`."""
        attributes = []
        while type(node) is ast.Attribute:
            attributes.insert(0, node.attr)
            node = node.value
        found = self._lookup(node.id) if type(node) is ast.Name else None
        return found and [self._library.walk(target, attributes) for target in found]

    def _called(self, node: ast.Call) -> list[str]:
        return [_shown(*one) for one in self._resolve(node.func) or ()]

    def _name(self, node: ast.Name | ast.Attribute) -> str:
        assigned = type(node) is ast.Name and type(node.ctx) is not ast.Load
        found = None if assigned else self._resolve(node)
        if not found:
            return self._fields(node)
        for target, rest in found:
            # module.__name__ tells nothing of what is in the module
            if target.name is not None or not rest.startswith(".__"):
                self.reads.add(target)
        return f"<{'|'.join(_shown(*one) for one in found)}>"

    def _import(self, node: ast.Import | ast.ImportFrom) -> str:
        if self._scopes and not self._scopes[-1].is_class:
            return ""  # counts where what it binds is read
        found = [
            (name, self._library.imported(what))
            for name, what in sorted(_imports(node, self._module.package))
        ]
        self.reads.update(target for _, target in found)
        return f"Import({','.join(f'{name}=<{_shown(target)}>' for name, target in found)})"

    # scopes

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> str:
        if self.only_words(node):
            return f"Words({node.name})"
        a = node.args
        every = (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg)))
        body = node.body if isinstance(node.body, list) else [node.body]
        scope = Scope(self._module.package, body, (arg.arg for arg in every))
        return self._fields(node, "body") + self._inside(scope, body)

    def _class(self, node: ast.ClassDef) -> str:
        head, scope = self._fields(node, "body"), Scope(self._module.package, is_class=True)
        body = []
        for statement in node.body:
            # ``x = x`` reads the module's x
            if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
                scope.add(statement)
            body.append(self._inside(scope, statement))
            scope.add(statement)
        return f"{head}[{','.join(filter(None, body))}]"

    def _comprehension(self, node) -> str:
        first, *_ = node.generators
        scope = Scope(self._module.package, (made.target for made in node.generators))
        # the first iterable is evaluated outside
        parts = [type(node).__name__, self.text(first.iter)]
        for made in node.generators:
            inner = [made.target, made.ifs] if made is first else [made.target, made.iter, made.ifs]
            parts += [str(made.is_async), *(self._inside(scope, one) for one in inner)]
        made = [getattr(node, name) for name in ("key", "value", "elt") if hasattr(node, name)]
        return f"({','.join([*parts, self._inside(scope, made)])})"

    # statements

    def _expression(self, node: ast.Expr) -> str:
        text = "" if is_constant(node) else self.text(node.value)
        return text and f"Expr({text})"

    def _nothing(self, node: ast.Pass) -> str:
        return ""

    def _annotated(self, node: ast.AnnAssign) -> str:
        if self._scopes and self._scopes[-1].is_class:  # a field
            names = {one.id for one in ast.walk(node.annotation) if isinstance(one, ast.Name)}
            kind = self._inside(Scope(self._module.package, names=names), node.annotation)
            return f"{self._fields(node)}:{kind}"
        if node.value is None:
            return ""
        return self._fields(ast.Assign(targets=[node.target], value=node.value))

    def _augmented(self, node: ast.AugAssign) -> str:
        if isinstance(node.target, ast.Name):
            self.text(ast.Name(node.target.id, ast.Load()))  # read, too
        return self._fields(node)

    def _raise(self, node: ast.Raise) -> str:
        if isinstance(node.exc, ast.Call):
            node = ast.Raise(exc=ast.Call(node.exc.func, [], []), cause=node.cause)
        return self._fields(node)

    def _assert(self, node: ast.Assert) -> str:
        return self._fields(node, "msg")

    # expressions

    def _call(self, node: ast.Call) -> str:
        found = self._resolve(node.func)
        if found == [] and last_name(node.func) == "print" and not _is_into_a_file(node):
            return ""
        if found and all(not rest and self._library.only_words(target) for target, rest in found):
            return "Words()"
        called = self._called(node)
        if called == [_ERROR]:
            node = ast.Call(node.func, [], [])
        elif called and all(name.startswith(_TALKING) for name in called):
            keywords = [one for one in node.keywords if not _is_text(one.value)]
            node = ast.Call(node.func, [one for one in node.args if not _is_text(one)], keywords)
        return self._fields(node)

    def _constant(self, node: ast.Constant) -> str:
        return _value(node.value)

    def _text(self, node: ast.JoinedStr) -> str:
        parts, words = [], ""
        for value in node.values:
            if isinstance(value, ast.Constant):  # how they are cut differs
                words += value.value
            else:
                parts += [_value(words), self.text(value)]
                words = ""
        return f"f({','.join([*parts, _value(words)])})"

    def _formatted(self, node: ast.FormattedValue) -> str:
        spec = self.text(node.format_spec or ast.JoinedStr([]))
        return f"{{{self.text(node.value)},{node.conversion},{spec}}}"

    _SPECIAL: ClassVar = {
        ast.Name: _name,
        ast.Attribute: _name,
        ast.Import: _import,
        ast.ImportFrom: _import,
        ast.FunctionDef: _function,
        ast.AsyncFunctionDef: _function,
        ast.Lambda: _function,
        ast.ClassDef: _class,
        **dict.fromkeys(_COMPREHENSIONS, _comprehension),
        ast.Expr: _expression,
        ast.Pass: _nothing,
        ast.AnnAssign: _annotated,
        ast.AugAssign: _augmented,
        ast.Raise: _raise,
        ast.Assert: _assert,
        ast.Call: _call,
        ast.Constant: _constant,
        ast.JoinedStr: _text,
        ast.FormattedValue: _formatted,
    }


def _shown(target: Target, rest: str = "") -> str:
    """A target as text; of transport, where definitions may move, the package alone."""
    module = transport(target.module) or target.module
    return f"{module}:{target.name}{rest}" if target.name else f"{module}{rest}"


def _is_into_a_file(node: ast.Call) -> bool:
    """Whether a call of ``print`` writes elsewhere than to the terminal."""
    into = [last_name(one.value) for one in node.keywords if one.arg == "file"]
    return into not in ([], ["stderr"], ["stdout"])


def _is_text(node: ast.AST) -> bool:
    """Whether an expression is text written out, or chooses or joins such text."""
    if isinstance(node, ast.BoolOp | ast.BinOp | ast.IfExp):
        return any(map(_is_text, ast.iter_child_nodes(node)))
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)


def _value(value: Any) -> str:
    """A constant, written alike by every Python: repr follows Unicode's version, and has limits."""
    kind = type(value)
    if kind is str:
        return ascii(value)
    if kind is int:
        return hex(value)
    if kind is float:
        return value.hex()
    if kind is complex:
        return f"{value.imag.hex()}j"
    return repr(value)
