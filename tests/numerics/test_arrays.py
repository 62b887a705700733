"""Every function of the package under both kinds of arrays, and what it refuses."""

import ast
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import array_cases
from array_cases import AS_GIVEN, CASES, IN_FLOAT32
from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics import arrays

KINDS = {
    "numpy-float32": lambda x: np.array(x, np.float32),
    "torch-float64": torch.tensor,
    "torch-float32": lambda x: torch.tensor(x, dtype=torch.float32),
    "torch-bfloat16": lambda x: torch.tensor(x, dtype=torch.bfloat16),
}
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
KINDS_AND_CUDA = [*KINDS, pytest.param("cuda-float32", marks=cuda)]
KINDS["cuda-float32"] = lambda x: torch.tensor(x, dtype=torch.float32, device="cuda")
each = pytest.mark.parametrize("name", CASES)


def made(x, kind):
    """Floats in one kind and type; whole numbers and masks keep theirs."""
    if x.dtype.kind == "f":
        return KINDS[kind](x)
    if kind.startswith("numpy"):
        return np.array(x)
    return torch.tensor(x, device="cuda" if kind.startswith("cuda") else "cpu")


def run(name, kind=None, **replaced):
    call, given, rest = CASES[name]
    given = {key: np.array(x) if kind is None else made(x, kind) for key, x in given.items()}
    return call(**given | replaced, **rest)


def numbers(x):
    """All arrays and numbers in a result, in order."""
    if isinstance(x, dict):
        return numbers(tuple(x.values()))
    if isinstance(x, tuple):
        return [number for part in x for number in numbers(part)]
    return [] if isinstance(x, str) else [x]


def tolerance(name, kind):
    if name in AS_GIVEN and kind == "torch-bfloat16":
        return 0.05
    return 1e-4 if name in IN_FLOAT32 | AS_GIVEN and "64" not in kind else 1e-9


def test_there_is_a_case_for_every_function_of_arrays():
    assert array_cases.functions_of_arrays() <= set(CASES)


@pytest.mark.parametrize("kind", KINDS_AND_CUDA)
@each
def test_both_kinds_give_the_same_numbers_and_their_own_kind(name, kind):
    found, expected = (numbers(run(name, *which)) for which in ([kind], []))
    assert len(found) == len(expected) > 0
    rtol = tolerance(name, kind)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, np.ndarray):
            assert isinstance(one, np.ndarray if kind.startswith("numpy") else torch.Tensor)
        if isinstance(one, torch.Tensor):
            assert one.is_cuda == kind.startswith("cuda")
        elif not isinstance(one, np.ndarray):
            assert isinstance(one, np.generic | bool | int | float)
        one, size = arrays.to_numpy(one), np.abs(np.nan_to_num(other, posinf=0)).max(initial=0)
        assert one.shape == np.shape(other)
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * float(size))


WRONG = {
    "text": np.array(["a", "b"]),
    "list of text": ["a", "b"],
    "a table": pd.DataFrame({"x": [1.0, 2.0]}),
    "objects": np.array([None, 1.0]),
    "complex": np.ones(3, complex),
    "rows of unequal length": [[1.0], [1.0, 2.0]],
    "a path": Path("x"),
}


@each
def test_what_is_no_array_is_refused_by_name(name):
    for parameter in CASES[name].given:
        for wrong in WRONG.values():
            with pytest.raises(StreamgaugeError, match="no array of real numbers"):
                run(name, **{parameter: wrong})


# an object's factors may be of another kind than its operand
TWO = [name for name, case in CASES.items() if len(case.given) > 1 and name.count(".") == 1]


@pytest.mark.parametrize("name", TWO)
def test_the_kinds_cannot_be_mixed(name):
    given = CASES[name].given
    first, second, *_ = given
    with pytest.raises(StreamgaugeError, match=f"both kinds of arrays: {first} is a NumPy"):
        run(name, **{second: torch.tensor(given[second])})


def test_a_stream_has_one_kind():
    from streamgauge.numerics.spectra import SinkAwareCovariance, StreamingCovariance

    x = np.ones((1, 2, 3))
    for stream in (StreamingCovariance(3), SinkAwareCovariance(3)):
        stream.update(x)
        with pytest.raises(StreamgaugeError, match="stream of NumPy arrays"):
            stream.update(torch.tensor(x))


def test_lists_and_columns_are_arrays_and_numbers_go_with_either():
    from streamgauge.numerics import inference, metrics

    expected = metrics.ce_rec(np.array([1, 4]), np.array([3, 4]))
    assert metrics.ce_rec([1, 4], [3, 4]) == expected == 0
    table = pd.DataFrame({"l_orig": [1, 4], "l_recon": [3, 4]}, index=[7, 8])
    np.testing.assert_array_equal(metrics.loss_recovered(table.l_orig, table.l_recon), [-1, 1])
    # a list beside tensors is a tensor there
    found = metrics.loss_recovered(torch.tensor([1.0, 4.0]), [3, 4])
    assert torch.equal(found, torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert isinstance(inference.tost(torch.tensor([0.1]), 0.01, 3, 0.2).p_value, torch.Tensor)
    assert metrics.loss_recovered(1.0, 1.0) == 1


def test_gradients_flow_where_the_formula_is_the_same_for_both():
    from streamgauge.numerics import metrics

    a = torch.ones(3, 2, requires_grad=True)
    metrics.squared_error_per_token(a, torch.zeros(3, 2)).sum().backward()
    assert (a.grad == 2).all()


def test_memory_is_shared_where_it_can_be_and_never_written_to():
    x = np.arange(6.0)
    assert arrays.to_torch(x).data_ptr() == x.ctypes.data
    for odd in (x[::-1], np.broadcast_to(1.0, 3)):
        assert arrays.to_torch(odd).tolist() == odd.tolist()
    x.flags.writeable = False
    arrays.to_torch(x)[0] = 9
    assert x[0] == 0


# --- free of files and of what is not needed ------------------------------------------------------
MODULES = sorted({name.partition(".")[0] for name in CASES})
NEED_TORCH = {"ard", "infonce", "logit_components", "row_metric"}


def in_python(code):
    paths = [str(Path(array_cases.__file__).parent), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_the_plain_modules_import_neither_torch_nor_pandas():
    plain = [f"streamgauge.numerics.{name}" for name in MODULES if name not in NEED_TORCH]
    check = "assert not {'torch', 'pandas'} & set(sys.modules)"
    in_python(f"import sys, {', '.join(plain)}; {check}")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_no_package_above_its_own(name):
    module = import_module(f"streamgauge.numerics.{name}")
    imported = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module)
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    own = {found for found in imported if found.startswith("streamgauge")}
    assert all(x == "streamgauge.base.errors" or x.startswith("streamgauge.numerics") for x in own)
    of_files = {"io", "json", "os", "pathlib", "shutil", "zarr"}
    assert not {found.partition(".")[0] for found in imported} & of_files


def test_no_function_opens_a_file():
    in_python(
        "import sys, array_cases\n"
        "def all_of_them():\n"
        "    for call, given, rest in array_cases.CASES.values():\n"
        "        call(**{name: x.copy() for name, x in given.items()}, **rest)\n"
        "all_of_them()\n"  # what is imported late is there now
        "def refuse(event, arguments):\n"
        "    if event == 'open': raise AssertionError(arguments)\n"
        "sys.addaudithook(refuse)\n"
        "all_of_them()\n"
    )
