"""Digests of code follow what is computed: what counts, what does not, under every Python."""

import ast
import collections
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from source_edits import reworded
from streamgauge.artifacts import code
from streamgauge.artifacts.code_text import TRANSPORT
from streamgauge.base.errors import StreamgaugeError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCE = ROOT / "src/streamgauge"


def closure(source, *entries, **more):
    return code.closure(entries or ["streamgauge.sae.m:f"], source=source, **more)


def reached(source, *entries, **more):
    return code.definitions(entries or ["streamgauge.sae.m:f"], source=source, **more)


ONE = "def one(): return 1\n"


@pytest.mark.parametrize(
    "f",
    [
        "from streamgauge.numerics.a import one\ndef f(): return one()",
        "from streamgauge.numerics.a import one as other\ndef f(): return other()",
        "from streamgauge.numerics import a\ndef f(): return a.one()",
        "from streamgauge import numerics\ndef f(): return numerics.a.one()",
        "import streamgauge.numerics.a\ndef f(): return streamgauge.numerics.a.one()",
        "import streamgauge.numerics.a as b\ndef f(): return b.one()",
        "from ..numerics.a import one\ndef f(): return one()",
        "from ..numerics import a\ndef f(): return a.one()",
        "from .. import numerics as n\ndef f(): return n.a.one()",
        "from . import reexport\ndef f(): return reexport.again()",
        "from .reexport import again\ndef f(): return again()",
        "from .reexport import a\ndef f(): return a.one()",
        "from .stars import one\ndef f(): return one()",
        "from .stars import *\ndef f(): return one()",
        "from streamgauge.numerics import inner\ndef f(): return inner()",
        "def f():\n from streamgauge.numerics.a import one\n return one()",
        "def f():\n import streamgauge.numerics.a as one\n def g(): return one.one()\n return g()",
        "def f():\n import streamgauge.numerics.a\n return streamgauge.numerics.a.one()",
    ],
)
def test_an_imported_name_is_followed_to_its_definition(library, f):
    source = library(
        sae__m=f,
        numerics__a=ONE + "two = 2\n",
        numerics="from .a import one as inner\nfrom . import a\n",
        sae__reexport="from streamgauge.numerics import a\nfrom .m2 import once as again\n",
        sae__m2="from streamgauge.numerics.a import one as once\n",
        sae__stars="from streamgauge.numerics.a import *\n",
    )
    assert reached(source) == {"streamgauge.sae.m:f", "streamgauge.numerics.a:one"}
    before = closure(source)
    assert closure(library(numerics__a=ONE + "two = 3\n")) == before
    after = closure(library(numerics__a=ONE.replace("1", "4")))
    assert {m for m in after if after[m] != before[m]} == {"streamgauge.numerics.a"}


def test_how_a_definition_is_imported_does_not_count_but_which_does(library):
    library(numerics__a="one = 1\n", numerics__b="one = 1\n")
    ways = [
        "from streamgauge.numerics.{} import one\ndef f(): return one",
        "from streamgauge.numerics.{} import one as two\ndef f(): return two",
        "from streamgauge.numerics import {}\ndef f(): return {}.one",
        "def f():\n import streamgauge.numerics.{}\n return streamgauge.numerics.{}.one",
    ]
    a, b = (
        {closure(library(sae__m=way.replace("{}", x)))["streamgauge.sae.m"] for way in ways}
        for x in "ab"
    )
    assert len(a) == len(b) == 1 and a != b
    sin, cos = (
        closure(library(sae__m=f"from numpy import {x} as y\nf = y")) for x in ("sin", "cos")
    )
    assert sin != cos


@pytest.mark.parametrize("use", ["g(a)", "getattr(a, 'one')", "a.missing"])
def test_a_module_passed_around_counts_with_all_its_definitions(library, use):
    library(numerics__a="from .b import three\nfrom . import b\none = 1\ntwo = 2\n")
    library(numerics__b="three = 3\nfour = 4\n")
    source = library(sae__m=f"from streamgauge.numerics import a\ndef f(g): return {use}")
    found = {
        "streamgauge.numerics.a:one",
        "streamgauge.numerics.a:two",
        "streamgauge.numerics.b:three",
    }
    assert reached(source) == {"streamgauge.sae.m:f", *found}
    source = library(sae__m="from streamgauge.numerics import a\ndef f(): return a.__name__")
    assert reached(source) == {"streamgauge.sae.m:f"}


def test_a_class_counts_whole_and_definitions_follow_one_another(library):
    source = library(
        sae__m="x = y = z = 1\nclass K:\n def a(self): return x\n b = y\ndef f(): return K.b"
    )
    assert reached(source) == {f"streamgauge.sae.m:{name}" for name in "fKxy"}


def test_what_a_module_does_when_imported_counts_with_anything_of_it(library):
    text = "TABLE = {{}}\n{}\nf = 1\ndef unused(): pass\n"
    source = library(sae__m=text.format(""), sae__n="f = 1")
    before, other = closure(source), closure(source, "streamgauge.sae.n:f")
    for does in (
        "g()",
        "TABLE['a'] = 1",
        "TABLE.a = 1",
        "if TABLE: TABLE['a'] = 1",
        "for x in 1, 2: TABLE[x] = 1",
        "del TABLE['a']",
    ):
        assert closure(library(sae__m=text.format(does))) != before, does
        assert closure(source, "streamgauge.sae.n:f") == other
    assert reached(source) == {f"streamgauge.sae.m:{name}" for name in ("f", "", "TABLE")}
    for does_not in ("'''words'''", "...", "print('a')", "if __name__ == '__main__': f()", "x = 3"):
        assert closure(library(sae__m=text.format(does_not))) == before, does_not
    library(sae="import os\nos.environ['A'] = '1'\nz = 1")
    assert reached(source, "streamgauge.sae.n:f") == {"streamgauge.sae.n:f", "streamgauge.sae:"}
    assert closure(source, "streamgauge.sae.n:f") != other


def test_of_transport_the_format_alone_counts(library):
    source = library(
        stores="FORMAT = 3\n",
        stores__a="write = int\nfrom .b import g\n",
        stores__b="def g(): pass\n",
        planning__a="b = 1\n",
        numerics__a=ONE,
        sae__m="from streamgauge.stores import a\nfrom streamgauge.planning.a import b\n"
        "from streamgauge.base.errors import StreamgaugeError\n"
        "def f(): return a.write(), a.g(), b\ndef h(x):\n if x: raise StreamgaugeError('a')\n",
    )
    before = closure(source)
    assert before == {"streamgauge.sae.m": before["streamgauge.sae.m"], "streamgauge.stores": "3"}
    assert {"streamgauge.stores.a:write", "streamgauge.stores.b:g"} < reached(source)
    assert closure(source, "streamgauge.sae.m:h")["streamgauge.base"] == "7"
    library(stores__a="from .b import g, write\n", stores__b="write = g = 1\n")  # a move
    assert closure(source) == before
    after = closure(library(stores="FORMAT = 4\n"))
    assert after == before | {"streamgauge.stores": "4"}
    # what a store hands on of other packages is followed there
    library(stores__b="from streamgauge.numerics.a import one as g\nwrite = 1\n")
    assert "streamgauge.numerics.a" in closure(source)
    # and so is what it calls there, because a number may come of it
    calling = "from streamgauge.numerics.a import one\ndef g(): return one()\nwrite = 1\n"
    library(stores__b=calling)
    assert "streamgauge.numerics.a" in closure(source)


def test_the_packages_of_transport_have_their_format():
    for package in ("base", "stores", "artifacts"):
        entry = f"streamgauge.{package}:FORMAT"
        number = importlib.import_module(f"streamgauge.{package}").FORMAT
        assert code.closure([entry]) == {f"streamgauge.{package}": str(number)}


def test_a_function_of_a_script_counts_without_how_the_script_is_started(library, tmp_path):
    source = library(numerics__a=ONE)
    script = tmp_path / "scripts/s.py"
    script.parent.mkdir()
    text = (
        "from streamgauge.numerics import a\ndef one(x): return a.one()\ndef two(): return {}\n{}"
    )
    script.write_text(text.format(2, "two()"))
    before = closure(source, "scripts/s.py:one", root=tmp_path)
    assert set(before) == {"scripts/s.py", "streamgauge.numerics.a"}
    assert reached(source, "scripts/s.py:one", root=tmp_path) == {
        "scripts/s.py:one",
        "streamgauge.numerics.a:one",
    }
    script.write_text(text.format(3, "with job(): one(snakemake)"))
    assert closure(source, "scripts/s.py:one", root=tmp_path) == before
    script.write_text(text.format(3, "").replace("a.one()", "a.one() + 1"))
    after = closure(source, "scripts/s.py:one", root=tmp_path)
    assert {m for m in after if after[m] != before[m]} == {"scripts/s.py"}


def test_where_the_library_lies_and_the_order_of_entries_do_not_count(library, tmp_path):
    source = library(sae__m="x = 1\ndef f(): return x", numerics__a=ONE)
    entries = ["streamgauge.sae.m:f", "streamgauge.numerics.a:one"]
    elsewhere = shutil.copytree(source, tmp_path / "else where" / "lib")
    assert closure(source, *entries) == closure(elsewhere, *reversed(entries))


@pytest.mark.parametrize(
    "entry",
    ["streamgauge.sae.m:nothing", "streamgauge.sae.none:f", "s.py:f", "streamgauge.sae.m:os"],
)
def test_an_entry_that_is_no_definition_is_named(library, entry):
    with pytest.raises(StreamgaugeError, match=re.escape(entry)):
        closure(library(sae__m="import os\nf = 1"), entry)


@pytest.mark.parametrize("text", ["def f(:\n", "f = 1\n\0"])
def test_a_broken_module_is_named(library, text):
    with pytest.raises(StreamgaugeError, match=r"m\.py: not valid Python"):
        closure(library(sae__m=text))


def test_names_that_lead_in_circles_end(library):
    source = library(
        sae__m="from .n import f, h\ndef g(): return h, g2()\ndef g2(): return g()",
        sae__n="from .m import f, h",
    )
    assert reached(source, "streamgauge.sae.m:g") == {"streamgauge.sae.m:g", "streamgauge.sae.m:g2"}


def test_an_edited_file_is_read_again(library):
    before = closure(library(sae__m="f = 1"))
    assert closure(library(sae__m="f = 2")) != before
    assert closure(library(sae__m="f = 1")) == before


# the library itself


def entries():
    """Every function and class of the library's that is no transport."""
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        if path.stem != "__init__" and not module.startswith(TRANSPORT):
            for node in ast.parse(path.read_bytes()).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    yield f"{module}:{node.name}"


def all_closures(source):
    return {entry: closure(source, entry) for entry in entries()}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    return shutil.copytree(SOURCE, tmp_path_factory.mktemp("source") / "streamgauge")


def test_words_and_unused_functions_in_every_module_change_no_digest(copied):
    before, count = all_closures(copied), collections.Counter()
    for path in copied.rglob("*.py"):
        path.write_bytes(reworded(path.read_text(), count))
    after = all_closures(copied)
    assert {e for e in after if after[e] != before[e]} == set()
    assert len(before) > 500
    assert set(count) == {"docstring", "raise", "StreamgaugeError", "label"}
    assert min(count.values()) > 5, count


def numbers(tree):
    """(function, number) of numbers that functions calculate with."""
    for function in tree.body:
        if isinstance(function, ast.FunctionDef):
            for statement in ast.walk(function):
                if isinstance(statement, ast.Return | ast.Assign):
                    for node in ast.walk(statement):
                        right = node.right if isinstance(node, ast.BinOp) else None
                        if isinstance(right, ast.Constant) and isinstance(right.value, int):
                            yield function.name, right


@pytest.mark.parametrize("package", ["numerics", "passes", "report"])
def test_a_changed_number_changes_exactly_what_reaches_it(copied, package):
    before = all_closures(copied)
    paths = sorted((copied / package).glob("*.py"))
    path, (function, number) = next(
        (path, found) for path in paths for found in numbers(ast.parse(path.read_bytes()))
    )
    module = f"streamgauge.{package}.{path.stem}"
    users = {e for e in before if f"{module}:{function}" in reached(copied, e)}
    text, was = path.read_bytes(), path.stat()
    lines = text.splitlines()
    old = lines[number.lineno - 1]
    changed = str(number.value + 1).encode()
    lines[number.lineno - 1] = old[: number.col_offset] + changed + old[number.end_col_offset :]
    path.write_bytes(b"\n".join(lines))
    after = all_closures(copied)
    path.write_bytes(text)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert {e for e in after if after[e] != before[e]} == users != set()
    for entry in users:
        assert before[entry].items() - after[entry].items() == {(module, before[entry][module])}


def test_an_evaluation_depends_on_the_metrics_and_on_no_figure():
    found = code.closure(["streamgauge.passes.evaluate:evaluate"])
    assert {"streamgauge.passes.evaluate", "streamgauge.numerics.metrics"} < set(found)
    assert not [module for module in found if module.startswith("streamgauge.report")]


# every Python

EVERY_SYNTAX = HERE / "every_syntax.py.txt"
PRINTED = """
import json, sys
given = json.load(sys.stdin)
sys.path.insert(0, given["src"])
from streamgauge.artifacts import code
syntax = code.closure(["s.py:f"], root=given["root"], source=given["source"])
print(json.dumps([syntax, code.closure(given["entries"])]))
"""


def pythons():
    """Every Python from 3.11 on that this machine has."""
    folders = [*os.get_exec_path(), *Path.home().glob(".pyenv/versions/*/bin")]
    found = {path.resolve() for folder in folders for path in Path(folder).glob("python3.*")}
    for path in sorted(found):
        version = re.fullmatch(r"python3\.(\d+)", path.name)
        # a shim may stand for a version that is not there
        if version and int(version[1]) >= 11 and not subprocess.run([path, "-c", ""]).returncode:
            yield path


def test_every_python_gives_the_same_digests(tmp_path):
    source = tmp_path / "streamgauge"
    (source / "numerics").mkdir(parents=True)
    shutil.copy(EVERY_SYNTAX, source / "every_syntax.py")
    (tmp_path / "s.py").write_text("from streamgauge import every_syntax\nf = every_syntax\n")
    given = {"root": tmp_path, "source": source, "src": SOURCE.parent, "entries": list(entries())}
    library = closure(SOURCE, *entries())
    for python in {Path(sys.executable).resolve(), *pythons()}:
        done = subprocess.run(
            [python, "-W", "ignore", "-c", PRINTED],
            input=json.dumps(given, default=str),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        syntax, theirs = json.loads(done.stdout)
        assert syntax["streamgauge.every_syntax"] == "335ad3577b2c", python
        assert theirs == library, python


def test_the_file_of_every_syntax_holds_every_syntax():
    later = {"TypeAlias", "TypeVar", "ParamSpec", "TypeVarTuple", "TemplateStr", "Interpolation"}
    old = {"Num", "Str", "Bytes", "NameConstant", "Ellipsis", "Index", "ExtSlice", "slice"}
    old |= {"Suite", "AugLoad", "AugStore", "Param"}
    other = {"Expression", "Interactive", "FunctionType", "TypeIgnore"}
    kinds = [kind for kind in vars(ast).values() if isinstance(kind, type)]
    leaves = {k.__name__ for k in kinds if issubclass(k, ast.AST) and not k.__subclasses__()}
    held = {type(node).__name__ for node in ast.walk(ast.parse(EVERY_SYNTAX.read_bytes()))}
    assert leaves - later - old - other <= held
