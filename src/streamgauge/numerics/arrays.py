"""Arrays of either kind, NumPy or torch: what the functions of this package take and give back.

A function takes arrays of one kind, on any device and in any float type, and what it gives back is
of that kind. A column of a pandas table counts as a NumPy array; a number or a list of numbers goes
with either kind. No gradient flows through a function that works in NumPy.
"""

import functools
import inspect
import sys
from collections.abc import Callable

import numpy as np

from streamgauge.base.errors import StreamgaugeError

NUMPY, TORCH = "NumPy", "torch"


def kind(x, name: str = "the argument") -> str | None:
    """`NUMPY` or `TORCH`; None for a number or a list, which go with either.

    Args:
        x: the array.
        name: what it is called in the message.

    Raises:
        StreamgaugeError: it is neither, or holds no real numbers.
    """
    torch = sys.modules.get("torch")  # nobody has a tensor before torch is there
    if torch is not None and isinstance(x, torch.Tensor):
        found, numbers = TORCH, not x.is_complex()
    elif isinstance(x, np.ndarray) or _is_column(x):
        found, numbers = NUMPY, getattr(x.dtype, "kind", "O") in "biuf"
    elif isinstance(x, (bool, int, float, np.generic, list, tuple)):
        try:
            found, numbers = None, np.asarray(x).dtype.kind in "biuf"
        except (ValueError, TypeError, RuntimeError):  # rows of unequal length, or tensors
            found, numbers = None, False
    else:
        found, numbers = None, False
    if not numbers:
        raise StreamgaugeError(
            f"{name} {f'holds {x.dtype}' if found else f'is a {type(x).__name__}'},"
            " no array of real numbers",
            remedy="Pass a NumPy array or a torch tensor; of a table, its .to_numpy().",
        )
    return found


def same_kind(before: str | None, x) -> str | None:
    """The kind of a stream that has been of kind `before` (None: of nothing yet), now given `x`.

    Raises:
        StreamgaugeError: `x` is no array of numbers, or one of the other kind.
    """
    found = kind(x, "what is added")
    if None not in (before, found) and before != found:
        raise StreamgaugeError(
            f"a stream of {before} arrays was given one of the kind {found}",
            remedy="Pass arrays of one kind.",
        )
    return before or found


def _is_column(x) -> bool:
    """Whether `x` is one column of a pandas table; pandas itself need not be imported."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(x, pandas.Series)


def to_numpy(x) -> np.ndarray:
    """`x` as a NumPy array in host memory, without its gradient; bfloat16 becomes float32."""
    if kind(x) != TORCH:
        return np.asarray(x)
    x = x.detach().cpu()
    return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()


def to_torch(x):
    """`x` as a torch tensor: the tensor itself, or the memory of a NumPy array where it can be."""
    import torch

    if kind(x) == TORCH:
        return x
    x = np.asarray(x)
    # torch takes no memory that is read-only or runs backwards
    shared = x.flags.writeable and min(x.strides, default=0) >= 0
    return torch.from_numpy(x if shared else x.copy())


def float64(x):
    """`x` in float64: torch stays on its device unless that device has no float64 (MPS)."""
    if hasattr(x, "double"):
        return (x.cpu() if x.device.type == "mps" else x).double()
    return np.asarray(x, dtype=np.float64)


def either(*names: str, inside: str | None = None) -> Callable:
    """Let a function take NumPy arrays or torch tensors, and give back what it was given.

    Args:
        names: the parameters that are arrays. None is handed on as it is.
        inside: the kind the function itself works with, `NUMPY` or `TORCH`. Arrays in its result,
            also in tuples and dicts, become what was given, tensors on the device of the first (in
            host memory for MPS, which has no float64). None: the function works with both.

    Raises:
        StreamgaugeError: by the function that is made: an argument is no array of numbers, or
            arrays of both kinds are mixed.
    """

    def decorate(function):
        signature, title = inspect.signature(function), function.__name__

        @functools.wraps(function)
        def taking_either(*args, **kwargs):
            call = signature.bind(*args, **kwargs)
            given = {name: x for name in names if (x := call.arguments.get(name)) is not None}
            kinds = {name: kind(x, f"{name} of {title}") for name, x in given.items()}
            first = {k: name for name, k in reversed(kinds.items())}
            if {NUMPY, TORCH} <= first.keys():
                raise StreamgaugeError(
                    f"{title} got both kinds of arrays: {first[NUMPY]} is a NumPy array,"
                    f" {first[TORCH]} a torch tensor",
                    remedy="Pass arrays of one kind.",
                )
            like = given[first[TORCH]] if TORCH in first else None
            within = inside or (NUMPY if like is None else TORCH)
            for name, x in given.items():
                if within == NUMPY:
                    # of functions that work with both, a number is as good as an array
                    plain = inside is None and isinstance(x, (int, float))
                    call.arguments[name] = x if plain else to_numpy(x)
                elif kinds[name] != TORCH:
                    call.arguments[name] = to_torch(x).to(like.device if TORCH in first else "cpu")
            result = function(*call.args, **call.kwargs)
            return _given_back(result, like) if inside else result

        return taking_either

    return decorate


def _given_back(x, like):
    """Arrays in `x` as NumPy, or as tensors beside the tensor `like`."""
    if isinstance(x, tuple):
        parts = [_given_back(part, like) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    if isinstance(x, dict):
        return {key: _given_back(part, like) for key, part in x.items()}
    if like is None:
        return to_numpy(x)[()] if hasattr(x, "detach") else x
    if isinstance(x, (np.ndarray, np.generic)):
        return to_torch(np.array(x)).to("cpu" if like.device.type == "mps" else like.device)
    return x


def decode(stored):
    """Stored vectors as float32; uint16 is taken for the bit patterns of bfloat16.

    Args:
        stored: any shape, float or uint16. A bfloat16's bits, shifted left by 16, are its float32.
    """
    if kind(stored) == TORCH:
        import torch

        return (stored.view(torch.bfloat16) if stored.dtype == torch.uint16 else stored).float()
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if stored.dtype == np.float16:
        import torch  # converts with vector instructions, many times as fast as NumPy

        return torch.from_numpy(stored).float().numpy()
    return stored.astype(np.float32, copy=False)
