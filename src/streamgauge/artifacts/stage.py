"""What a stage is: one kind of artifact, and all that the pipeline knows of it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from streamgauge.artifacts import costs
from streamgauge.artifacts.blocks import Block, whole
from streamgauge.base.paths import cell


class Stage(NamedTuple):
    """One kind of artifact.

    Attributes:
        what: what such an artifact is, in the words of `inspect`.
        path: its manifest, with wildcards.
        script: file below ``workflow/scripts``; the function of the stage's name there makes it.
        keys: the blocks of the configuration that it depends on, as its rule shows them.
        files: what lies beside the manifest, as its rule writes it: names with wildcards; one that
            begins with a dot is the manifest's own with another suffix.
        config: picks from (config, wildcards) what it depends on, and nothing else; the blocks
            `keys` as they stand where it is not given.
        function: name of the function in `script`, where it is not the stage's own.
        code: from (config, wildcards) further entry points that compute it,
            ``"package.module:name"``: what is found by name at run time, see `base.entry`.
        in_parts: a store that several jobs write (``part.py``) and one gathers (`script`).
        sample: what `adopt` repeats of one that is dear: some ``shards`` of a store in parts, the
            first batch of ``sequences``, the first ``steps`` of a training; else the ``whole``.
        work: what one costs, see `costs`; None where no model runs and nothing is trained.
        reads: bytes that one reads from stores, where that takes time.
        memory: what its job holds at once, see `memory`; None for a small job.
        made_for: whether a study makes one, from (config, wildcards).
    """

    what: str
    path: str
    script: str
    keys: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    config: Block | None = None
    function: str | None = None
    code: Callable[[Mapping, Mapping], Iterable[str]] = lambda config, w: ()
    in_parts: bool = False
    sample: str = "whole"
    work: Callable | None = None
    reads: Callable | None = None
    memory: Callable | None = None
    made_for: Callable[[Mapping, Mapping], bool] = lambda config, w: True

    def paths(self) -> list[str]:
        """The artifact's files and folders, with wildcards."""
        folder, name = self.path.rsplit("/", 1)
        stem = name.removesuffix(".json")
        return [f"{folder}/{stem * (file[0] == '.')}{file}" for file in self.files]

    def block(self, config: Mapping, wildcards: Mapping) -> dict[str, Any]:
        """The part of the configuration that an artifact depends on."""
        return (self.config or whole(*self.keys))(config, wildcards)

    def entries(self, stage: str, config: Mapping, wildcards: Mapping) -> list[str]:
        """Where the code that computes an artifact of `stage` starts, see `code.closure`."""
        scripts = [self.script, "part.py"] if self.in_parts else [self.script]
        own = [f"{script}:{self.function or stage}" for script in scripts]
        return [*own, *self.code(config, wildcards)]

    def cost(self, config: Mapping, wildcards: Mapping, shape: costs.Shape) -> costs.Work:
        """Tokens, FLOPs and bytes of one; nothing where no model runs and nothing is trained."""
        if self.work is None:
            return costs.Work(0, 0, 0)
        return self.work(config, cell(wildcards) | dict(wildcards), shape)
