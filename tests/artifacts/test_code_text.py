"""The text of a definition: which names it follows, and what it leaves out."""

import pytest

from streamgauge.artifacts import code

MODULE = """
import warnings
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.progress import Progress
x = 1
y = 2
def g(): return 3
"""


def closure(source):
    return code.closure(["streamgauge.sae.m:f"], source=source)


def names(source):
    """What `f` reaches in its own module."""
    return {
        one.split(":")[1]
        for one in code.definitions(["streamgauge.sae.m:f"], source=source)
        if one.startswith("streamgauge.sae.m:")
    }


@pytest.mark.parametrize(
    "f",
    [
        "def f(x): return x",
        "def f(x, /): return x",
        "def f(*, x): return x",
        "def f(*x): return x",
        "def f(**x): return x",
        "def f():\n x = 2\n return x",
        "def f():\n x: int = 2\n return x",
        "def f():\n x += 2",
        "def f():\n (a, [x, *b]) = c\n return x",
        "def f():\n (a, [b, *x]) = c\n return x",
        "def f():\n del x",
        "def f():\n for x in (): return x",
        "def f():\n with open('') as x: return x",
        "def f():\n try: return\n except OSError as x: return x",
        "def f():\n import x\n return x",
        "def f():\n import x.z\n return x",
        "def f():\n from z import z as x\n return x",
        "def f():\n def x(): pass\n return x",
        "def f():\n class x: pass\n return x",
        "def f():\n if (x := 2): return x",
        "def f():\n a = [x := b for b in ()]\n return x",
        "def f():\n def inner(): return x\n x = 2\n return inner",
        "def f():\n x = 2\n def inner():\n  nonlocal x\n  x = 3\n  return x",
        "def f():\n def inner(a=lambda: x): pass\n x = 2",
        "f = lambda x: x",
        "f = lambda *x, **y: (x, y)",
        "f = [x for x in ()]",
        "f = {x: y for x, y in ()}",
        "f = {x for y in () for x in y if x}",
        "f = (lambda: x for x in ())",
        "def f(a):\n match a:\n  case x: return x",
        "def f(a):\n match a:\n  case [*x]: return x",
        "def f(a):\n match a:\n  case {**x}: return x",
        "def f(a):\n match a:\n  case int(x) | str(x): return x",
        "def f(a):\n match a:\n  case 1 as x: return x",
        "class f:\n x = 2\n a = x",
        "class f:\n for x in (): a = x",
        "class f:\n def x(self): pass\n @x.setter\n def y(self): pass",
        "async def f(x):\n async for y in x: await y",
        "def f(a): return a.x",
        "def f(): return dict(x=1)",
        "def f(): return 'x'",
        "def f(a: x, *b: x, c: x = 1, **d: x) -> x:\n b: x\n c: x = 1\n a.c: x = 2",
        "class f:\n a: x\n b: x = 1",
        "f: x = 1",
    ],
)
def test_a_name_bound_inside_is_not_the_modules(library, f):
    assert names(library(sae__m=MODULE + f)) == {"f"}


@pytest.mark.parametrize(
    "f",
    [
        "def f(): return x",
        "def f():\n global x\n x = x + 1",
        "def f():\n global x\n x += 1",
        "def f():\n global x\n def inner(): return x",
        "def f(x):\n def inner():\n  global x\n  return x",
        "def f(a=x): pass",
        "def f(*, a=x): pass",
        "def f(x=x): return x",
        "@x\ndef f(): pass",
        "def f():\n def inner(a=x): x = 2",
        "def f():\n def inner(x): pass\n return x",
        "def f():\n class inner:\n  x = 2\n  def a(self): return x",
        "def f():\n return [x for x in x]",
        "def f():\n [x for x in ()]\n return x",
        "def f():\n return [a for b in () for a in x]",
        "def f():\n return [a for a in () if x]",
        "def f():\n (lambda x: 1)\n return x",
        "def f():\n (lambda a=x: 1)",
        "def f(): return (a := x)",
        "def f(): return f'{x}'",
        "def f(a): return f'{a:{x}}'",
        "def f(a):\n match a:\n  case x.a: return 1",
        "def f(a):\n match a:\n  case x(): return 1",
        "def f(a):\n match a:\n  case 1 if x: return 1",
        "def f():\n try: pass\n except x: pass",
        "def f(a): a[x] = 1",
        "def f(): x.a = 1",
        "def f(): x[0] += 1",
        "def f(): return x.a.b",
        "def f(a): a(b=x)",
        "def f():\n with x: pass",
        "def f(): raise x",
        "def f(a): raise a from x",
        "async def f(): await x",
        "def f(): yield x",
        "class f(x): pass",
        "class f(metaclass=x): pass",
        "@x\nclass f: pass",
        "class f: x = x",
        "class f: a: int = x",
        "class f:\n x = 2\n def a(self): return x",
        "class f:\n x = 2\n a = [x for _ in ()]",
        "class f:\n a = [b for b in x]",
        "if x: f = 1",
        "for a in x: f = a",
        "with x as f: pass",
        "try: f = 1\nexcept x: pass",
        "while x: f = 1",
        "f = 1\nf = x",
        "f = []\nf += x",
        "f: int = x",
        "a, f = x",
        "def h():\n global f\n f = x\nf = None",
        "h = x\ndef f(): return h",
        "import h\nh = x\nf = h",
    ],
)
def test_a_name_read_from_the_module_is_followed(library, f):
    assert names(library(sae__m=MODULE + f)) - {"a", "h"} == {"f", "x"}


FAULT = "def fault(a): return StreamgaugeError(a)\n"
SAME = [
    ("def f(): return 1", "# why\ndef f():\n\n    '''Words.'''\n    return (1)  # why"),
    ("def f(): pass", "def f():\n '''Words.'''"),
    ("class f: x = 1", "class f:\n '''Words.'''\n x = 1\n '''Of x.'''"),
    ("def f(a, *b): return 1", "def f(a: int, *b: str) -> int: return 1"),
    ("def f():\n a = 1", "def f():\n a: int = 1"),
    ("f = 1", "f: int = 1"),
    ("def f(): raise ValueError('a', x)", "def f(): raise ValueError(f'b {g()}')"),
    ("def f(): raise ValueError('a')", "def f(): raise ValueError(*y, a=x)"),
    ("def f(): return StreamgaugeError('a')", "def f(): return StreamgaugeError('b', where=x)"),
    ("def f():\n pass", "def f():\n print(x, 'b')"),
    ("def f():\n pass", "def f():\n import sys\n print(x, 'b', file=sys.stderr)"),
    ("def f(a): assert a, 'b'", "def f(a): assert a, f'{x}'"),
    ("def f(a): a or print('a')", "def f(a): a or print(f'{x}')"),
    ("def f(a): Progress(a, 'b', f'c {x}')", "def f(a): Progress(a, f'd {y}')"),
    ("def f(a): Progress(1, a or 'b')", "def f(a): Progress(1, a or f'{y}')"),
    ("def f(a): Progress(1, label='b')", "def f(a): Progress(1, label=f'{y}')"),
    ("def f(): warnings.warn('a', stacklevel=2)", "def f(): warnings.warn(f'{x}', stacklevel=2)"),
    (FAULT + "def f(): raise fault('a')", FAULT + "def f(): raise fault(f'b {x}', g())"),
    (FAULT + "def f(): return fault('a')", FAULT + "def f(): return fault(f'b {x}')"),
    (
        FAULT + "def f(): fault('a')",
        FAULT.replace("(a)\n", "(a + '.', where=x)\n") + "def f(): fault(1)",
    ),
    (
        "from typing import NoReturn\ndef fault(a) -> NoReturn: exit(a)\ndef f(): fault(1)",
        "from typing import NoReturn\ndef fault(a) -> NoReturn: exit(x)\ndef f(): fault(2)",
    ),
    (
        "def fault(a) -> StreamgaugeError:\n b = 1\n return a\ndef f(): fault(1)",
        "def fault(a) -> StreamgaugeError:\n b = x\n return b\ndef f(): fault(2)",
    ),
    (
        "class f:\n def a(self) -> StreamgaugeError: return x",
        "class f:\n def a(self) -> StreamgaugeError: return y",
    ),
    ("def f():\n import os\n return os.sep", "import os\ndef f(): return os.sep"),
    ("def f(a): return f'{a}' 'b' f'c'", "def f(a): return f'{a}bc'"),
    ("def f(a): return f'{a:}'", "def f(a): return f'{a}'"),
    ("def f(): return 1e3, 0x10, 'a' \"b\"", "def f(): return 1000.0, 16, 'ab'"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_wording_and_layout_do_not_count(library, one, other):
    found = [closure(library(sae__m=MODULE + text)) for text in (one, other)]
    assert found[0] == found[1]
    assert not names(library(sae__m=MODULE + other)) & {"x", "y", "g", "fault"}


DIFFERENT = [
    ("def f(): return 1", "def f(): return 2"),
    ("def f(): return 1", "def f(): return 1.0"),
    ("def f(): return 1", "def f(): return True"),
    ("def f(): return 'a'", "def f(): return b'a'"),
    ("def f(): return ''", "def f(): return None"),
    ("def f(): return 0.1", "def f(): return 0.10000000000000002"),
    ("def f(): return 1j", "def f(): return 2j"),
    ("def f(): return ...", "def f(): return Ellipsis"),
    ("def f(): return 10**3", "def f(): return 10*3"),
    ("def f(a): return f'{a}'", "def f(a): return f'{a!r}'"),
    ("def f(a): return f'{a}'", "def f(a): return f'{a:.2f}'"),
    ("def f(a): return f'{a}b'", "def f(a): return f'b{a}'"),
    ("def f(a, b): return a", "def f(b, a): return a"),
    ("def f(a, b=1): pass", "def f(a, *, b=1): pass"),
    ("def f(): return max", "def f(): return min"),
    ("def f(): return x", "def f(): return y"),
    ("def f(x): return x", "def f(y): return x"),
    ("class f: a: int", "class f: b: int"),
    ("class f: a: int", "class f: a: str"),
    ("class f: a: int", "class f:\n a: int\n b: int"),
    ("class f: a: int = 1", "class f: a: int = 2"),
    ("def f(): raise ValueError('a')", "def f(): raise KeyError('a')"),
    ("def f(a): Progress(1, 'a')", "def f(a): Progress(2, 'a')"),
    ("def f(a): print('a', file=a)", "def f(a): print('b', file=a)"),
    ("def f(a): assert a", "def f(a): assert not a"),
    ("def f(print): print('a')", "def f(print): print('b')"),
    ("def f(warn): warn('a')", "def f(warn): warn('b')"),
    ("def f(a): a.warn('a')", "def f(a): a.warn('b')"),
    (
        "class Progress: pass\ndef f(): Progress('a')",
        "class Progress: pass\ndef f(): Progress('b')",
    ),
    ("def f(): ValueError('a')", "def f(): ValueError('b')"),
    ("def fault(a): return a\ndef f(): fault(1)", "def fault(a): return a\ndef f(): fault(2)"),
    (
        "def fault(a):\n b(a)\n return StreamgaugeError(a)\ndef f(): fault(1)",
        "def fault(a):\n b(a)\n return StreamgaugeError(a)\ndef f(): fault(2)",
    ),
    ("x = 1\ndef f(): return x", "x = 2\ndef f(): return x"),
    ("f = []", "f = []\nf += [1]"),
    ("if a: f = 1\nelse: g = 2", "if a: f = 1\nelse: g = 3"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_is_computed_counts(library, one, other):
    found = [closure(library(sae__m=MODULE + text)) for text in (one, other)]
    assert found[0]["streamgauge.sae.m"] != found[1]["streamgauge.sae.m"]
