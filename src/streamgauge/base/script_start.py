"""Imported by the scripts of the workflow before anything heavy: a start that fails is one line."""

import sys

from streamgauge.base import ends

# only a process that Snakemake made for a script; a library leaves signals and hooks alone
_snakemake = getattr(sys.modules["__main__"], "snakemake", None)
if _snakemake is not None:
    ends.at_once("error", next(iter(_snakemake.log), None))
