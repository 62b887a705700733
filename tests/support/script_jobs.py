"""Scripts of the workflow in processes of their own, started as Snakemake starts them."""

import json
import sys
from pathlib import Path

from pipeline import ROOT
from streamgauge.artifacts import manifest

PREAMBLE = """import sys, json, pathlib
from types import SimpleNamespace
class Names(dict):
    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)
made = {{key: Names(value) for key, value in json.loads({job!r}).items()}}
snakemake = SimpleNamespace(**made, threads=1, log=[{log!r}])
pathlib.Path({ready!r}).touch()
"""


def command(folder: Path, script: str, stage: str, config: dict, **job: dict) -> list[str]:
    """The words that run a job in `folder`; ``ready`` appears there once its own code begins.

    Its log is ``job.log``; `job` may give ``input``, ``output`` and ``wildcards`` by name.
    """
    wildcards = job.get("wildcards", {})
    spec = json.dumps({"stage": stage, "config": config, "wildcards": wildcards, "code": {}})
    values = {"input": {}, "output": {}, "wildcards": {}, "resources": {"device": "cpu"}, **job}
    values["params"] = {"spec": spec}
    words = {"log": str(folder / "job.log"), "ready": str(folder / "ready")}
    text = PREAMBLE.format(job=json.dumps(values), **words)
    (folder / "job.py").write_text(text + (ROOT / "workflow/scripts" / script).read_text())
    return [sys.executable, str(folder / "job.py")]


def tokens(folder: Path, model: Path, document: str = "a b c d e f", **changes) -> list[str]:
    """A job that tokenises one text file with the tokenizer of `model`."""
    (folder / "prose.txt").write_text(document, encoding="utf-8")
    corpus = {"source": "text", "paths": [str(folder / "prose.txt")], "context_length": 4}
    corpus |= {"train_sequences": 1, "eval_fraction": 0.0, **changes}
    manifest.write(folder / "subject.json", "{}", [], [], {})
    return command(
        folder,
        "text.py",
        "tokens",
        {"corpus": corpus, "sequences": corpus["train_sequences"]},
        input={"model": str(model), "subject": str(folder / "subject.json")},
        output={"store": str(folder / "t.zarr"), "manifest": str(folder / "t.json")},
        wildcards={"subject": "tiny", "corpus": "prose", "split": "train"},
    )


def subject(folder: Path, model: Path) -> list[str]:
    """A job that prepares the model directory `model`."""
    return command(
        folder,
        "subject.py",
        "subject",
        {"subject": {"source": "local", "path": str(model)}},
        output={"model": str(folder / "model"), "manifest": str(folder / "subject.json")},
        wildcards={"subject": "tiny"},
    )
