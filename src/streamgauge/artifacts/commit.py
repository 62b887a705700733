"""Give a gathered store its final name and its manifest, whoever else may be doing the same."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamgauge.artifacts import manifest
from streamgauge.base.errors import StreamgaugeError
from streamgauge.stores import layer_stores
from streamgauge.stores.receipts import withdraw
from streamgauge.stores.unfinished import remove_siblings


def finish(
    check: Callable[[Path, Sequence[Path | str]], dict],
    final: Path | str,
    path: Path | str,
    spec: str,
    inputs: Sequence[Path | str],
    receipts: Sequence[Path | str],
) -> None:
    """Gather a store and commit it, unless another process has done so, or does so meanwhile.

    That is a job of an earlier run that lived on, or its successor. The slower one finds the same
    store made: no failure, after which a workflow engine would remove the store.

    Args:
        check: of `gather`: `activations`, `gradients` or `probes`.
        final, path, spec, inputs, receipts: as for `commit`.

    Raises:
        StreamgaugeError: as `check` and `commit` say.
    """

    def made() -> bool:
        return Path(final).is_dir() and manifest.says(path, spec, inputs)

    if made():
        return
    scratch = layer_stores.scratch(final, manifest.identity(spec, inputs))
    try:
        facts = check(scratch, receipts)
        commit(scratch, final, path, spec, inputs, facts, receipts)
    except StreamgaugeError:
        if not made():
            raise
        remove_siblings(Path(final))


def commit(
    scratch: Path | str,
    final: Path | str,
    path: Path | str,
    spec: str,
    inputs: Sequence[Path | str],
    facts: Mapping[str, Any],
    receipts: Sequence[Path | str] = (),
) -> None:
    """Give a gathered store its final name, and write its manifest.

    All that takes long or may fail comes before the store leaves its scratch directory: a workflow
    engine removes the outputs of a job that is killed, and what lies in `scratch` is no output.
    Receipts of another number of parts (``.{name}.part-{i}-of-{n}``), begun earlier, go at the end.

    Args:
        scratch, final: the directory of the store, and its final one.
        path, spec, inputs, facts: as for `manifest.write`.
        receipts: of the parts gathered; whoever runs the jobs removes them when he has seen that
            the store is there.

    Raises:
        StreamgaugeError: the store is not whole; or store or manifest cannot be written.
    """
    with layer_stores.writing(scratch):
        layer_stores.sweep(Path(scratch))
    manifest.write(
        path,
        spec,
        [final],
        inputs,
        facts,
        lying={Path(final): Path(scratch)},
        commit=lambda: layer_stores.commit(scratch, final),
    )
    final = Path(final)
    for other in {*final.parent.glob(f".{final.stem}.part-*-of-*")} - {*map(Path, receipts)}:
        withdraw(other)
