"""Code that is found by its name at run time: what draws a figure, what fetches a subject."""

import importlib
from typing import Any

#: What fills the directory of a subject, from its block of the configuration.
SOURCE = "streamgauge.models.sources:from_{source}"
#: The architectures of SAEs that are read, by name.
ARCHITECTURES = "streamgauge.sae.architectures:ARCHITECTURES"


def named(entry: str) -> Any:
    """What ``"streamgauge.package.module:name"`` stands for.

    Keys follow the names that code reads, and not this one: one more of a kind changes no key of
    the others. What a stage finds this way has to be an entry point of its own, `Stage.code`.
    """
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)
