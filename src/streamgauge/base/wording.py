"""Words for messages: paths of keys, values, sizes, near misses, and many faults in one error."""

import difflib
import os
import re
import shlex
from collections.abc import Iterable
from typing import Any

from streamgauge.base.errors import StreamgaugeError

# characters of the user's own that a message repeats, and faults that it lists
_LONGEST, _MOST_LISTED = 60, 50


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint at the word of `valid` nearest to `word`, or nothing."""
    near = difflib.get_close_matches(word[:_LONGEST], list(valid), n=1, cutoff=0.6)
    return f" (nearest: {near[0]})" if near else ""


def refuse(faults: Iterable[str], where: str) -> None:
    """Raise all of `faults` as one error, a line each where they are several; nothing for none."""
    faults = list(dict.fromkeys(faults))
    if not faults:
        return
    if len(faults) == 1:
        raise StreamgaugeError(faults[0], where=where)
    more = len(faults) - _MOST_LISTED
    listed = faults[:_MOST_LISTED] + ([f"and {more} more"] if more > 0 else [])
    lines = "".join(f"\n  - {fault}" for fault in listed)
    raise StreamgaugeError(f"{len(faults)} faults{lines}", where=where)


def join(path: str, key: str) -> str:
    """The path of `key` below `path`."""
    return f"{path}.{named(key)}" if path else named(key)


def named(word: str) -> str:
    """A word of the user's as it stands, or as `shown` where it would not read as one word."""
    usual = word.isprintable() and 0 < len(word) <= _LONGEST and not re.search(r"\s", word)
    return word if usual else shown(word)


def shown(value: Any) -> str:
    """A value as YAML writes it, on one line and cut short."""
    words = {"None": "null", "True": "true", "False": "false"}
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits, or deeper, than Python writes
        text = f"{kind_of(value)} too large to show"
    text = words.get(text, text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    return {dict: "a mapping", list: "a list", str: "text"}.get(type(value), type(value).__name__)


def bytes_in_words(n: int) -> str:
    """A byte count as people read it: 512 bytes, 3.4 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.1f} {unit}"
    return f"{n} bytes"


def remade(manifest: object, *more: object) -> str:
    """The remedy for an artifact that is damaged, whoever meets it.

    Args:
        manifest: its path; `more`: what else lies in the way.
    """
    flag = "-rf" if more or os.path.isdir(str(manifest)) else "-f"
    remove = shlex.join(["rm", flag, str(manifest), *map(str, more)])
    return f"Make it anew: {remove}, then run snakemake again; all else stays."
