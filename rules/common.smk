# The validated config, the paths of artifacts, and the one parameter every rule has.
import os
import sys

from snakemake.exceptions import WorkflowError

SRC = os.path.join(workflow.basedir, "src")
sys.path.insert(0, SRC)
# jobs are children of this process and import the library from here, installed or not
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SRC, os.environ.get("PYTHONPATH")]))

from streamgauge import provenance
from streamgauge.config import validate
from streamgauge.errors import StreamgaugeError
from streamgauge.study import check_grid

try:
    config = validate(config)
    check_grid(config, "results")
except StreamgaugeError as error:
    raise WorkflowError(str(error))

wildcard_constraints:
    subject=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    corpus=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    study=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    ell=r"\d\d+",
    split="train|eval",
    expansion=r"\d+",
    k=r"\d+",
    tokens=r"\d+",
    objective="mse|behavioral|e2e",
    seed=r"\d+",

CORPUS = "results/{subject}/{corpus}"
LAYER = f"{CORPUS}/L{{ell}}"
SAE = f"{LAYER}/sae/topk-x{{expansion}}-k{{k}}-t{{tokens}}-{{objective}}-seed{{seed}}"
FIGURE_NAMES = list(config["figures"])
STUDY = f"results/studies/{config['study']}"

# two jobs side by side on this machine; a cluster job has its own cores
THREADS = max(1, workflow.cores // 2) if workflow.cores else 8
# on CPU `gpu` stays 0, so that a profile's limit of one GPU holds nothing back
COMPUTE = {"gpu": int(config["device"] == "cuda"), "device": config["device"]}


def spec(stage):
    """The spec of an artifact, as a function of wildcards only (Snakemake tracks no other)."""
    return lambda wildcards: provenance.spec(workflow.basedir, config, stage, wildcards)


def grid(pattern):
    """`pattern` filled in for every cell of the study's grid."""
    cells = config["grid"]
    return [
        path
        for subject in cells["subjects"]
        for path in expand(
            pattern,
            subject=subject,
            corpus=cells["corpora"],
            ell=[f"{layer:02d}" for layer in cells["layers"][subject]],
            expansion=cells["expansion"],
            k=cells["k"],
            tokens=cells["tokens"],
            objective=cells["objectives"],
            seed=cells["seeds"],
        )
    ]


def layers(pattern):
    """`pattern` filled in for every hooked layer of the study."""
    return sorted(set(grid(pattern)))


def corpora(pattern):
    """`pattern` filled in for every subject and corpus of the study."""
    return expand(pattern, subject=config["grid"]["subjects"], corpus=config["grid"]["corpora"])


def own_files(section, name, wildcards):
    """The user's own files behind a subject or corpus: editing one makes the artifact anew."""
    return provenance.own_files(config[section][wildcards[name]])


def figure(name, category):
    """The outputs of figure `name`."""
    stem = f"results/studies/{{study}}/figures/{name}"
    labels = {"study": "{study}", "what": name.replace("_", " ")}
    caption = f"../workflow/report/{name}.rst"
    return {
        "manifest": f"{stem}.json",
        "svg": report(f"{stem}.svg", caption=caption, category=category, labels=labels),
        "png": f"{stem}.png",
    }
