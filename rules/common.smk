# The validated config, the paths of artifacts, and the one parameter every rule has.
import hashlib
import os
import re
import sys

from snakemake.exceptions import WorkflowError

SRC = os.path.join(workflow.basedir, "src")
sys.path.insert(0, SRC)
# jobs are children of this process and import the library from here, installed or not
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SRC, os.environ.get("PYTHONPATH")]))

from streamgauge import provenance, requests, scatter, study, yaml_file
from streamgauge.config import validate
from streamgauge.errors import StreamgaugeError
from streamgauge.study import check_grid

try:
    for path in workflow.configfiles:
        yaml_file.read(path)  # what Snakemake lets pass: tags, keys given twice
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
    part=r"\d+",
    parts=r"\d+",
    sae=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    prompts=r"[a-z][a-z0-9_-]*",
    k_sub=r"\d+",
    source="mean|ot",
    penalty=r"\d[\d.e+-]*",

CORPUS = "results/{subject}/{corpus}"
LAYER = f"{CORPUS}/L{{ell}}"
SAE = f"{LAYER}/sae/{{sae}}"
# the cross-lingual suite: a subject's Z of a layer, and what is made of it with paired prompts
CROSS = "results/{subject}/crosslingual"
PROMPTS = f"{CROSS}/{{prompts}}"
BASIS = f"{CROSS}/basis/L{{ell}}-k{{k_sub}}"
SUBSPACE = f"{PROMPTS}/L{{ell}}-k{{k_sub}}"
PATCHING = f"{SUBSPACE}/patching-{{source}}"
ARD = f"{PROMPTS}/L{{ell}}/ard-{{penalty}}"
ARD_BASIS = f"{CROSS}/basis/L{{ell}}-k{config['ard']['k_sub']}"
CROSS_TABLES = [
    *("heads", "layers", "similarity", "separation", "updates"),
    *("bridge", "bridge_spectra", "patching", "ard"),
]
CROSS_FIGURES = [name for name in config["figures"] if name.startswith("crosslingual_")]
# the folder of an SAE that a study trains says how; one objective, one rule
TRAINED = "topk-x{expansion}-k{k}-t{tokens}-{objective}-seed{seed}"
# how often verdicts err does not depend on the study: made when asked for
ELSEWHERE = ("verdict_calibration", "crosslingual_")
FIGURE_NAMES = [name for name in config["figures"] if not name.startswith(ELSEWHERE)]
STUDY = f"results/studies/{config['study']}"

# two jobs side by side on this machine; a job on a cluster, and whoever submits it, do not count
CORES = None if workflow.remote_exec else workflow.resource_settings.cores
THREADS = requests.threads(config, CORES)
SCRATCH = [name for name, block in config["subjects"].items() if block["source"] == "scratch"]


def spec(stage):
    """The spec of an artifact, as a function of wildcards only (Snakemake tracks no other).

    Which part of a store a job writes is no part of the store's spec.
    """

    def of(wildcards):
        named = {name: wildcards[name] for name in wildcards.keys() if name not in ("part", "parts")}
        return provenance.spec(workflow.basedir, config, stage, named)

    return of


def request(stage):
    """Memory and minutes that a job over one subject asks for, more with every attempt."""

    def asked(name):
        def of(wildcards, attempt):
            subject = config["subjects"][wildcards.subject]
            shape = study.shape_of(wildcards.subject, subject, "results")
            return requests.job(config, stage, dict(wildcards), shape, attempt)[name]

        return of

    return {"mem_mb": asked("mem_mb"), "runtime": asked("runtime")}


def compute(stage):
    """What a job that runs a model or trains asks for."""
    # on CPU `gpu` stays 0, so that a profile's limit of one GPU holds nothing back
    gpu = int(config["device"] == "cuda")
    return {"gpu": gpu, "device": config["device"], **request(stage)}


def members(paths):
    """Which files a table is made of, as a parameter: it is made anew when one comes or goes.

    Snakemake's own trigger for that is off: it would also make a store anew when the number of
    parts it is written in changes, and that number changes no byte of it.
    """
    return hashlib.sha256("\n".join(sorted(paths)).encode()).hexdigest()[:12]


def parts(stage, store):
    """The receipts of the parts that `store` of a layer is written in."""

    def receipts(wildcards):
        split = dict(wildcards).get("split", "eval")
        n = scatter.n_parts(config, stage, wildcards.corpus, split)
        stem = f"{LAYER}/.{store}".format(**wildcards)
        return [f"{stem}.part-{i}-of-{n}" for i in range(n)]

    return receipts


def one_of(names):
    """A constraint that lets a wildcard be one of `names` and nothing else."""
    return "|".join(map(re.escape, names)) or "(?!)"


def trained(objective):
    """A constraint that lets `{sae}` be an SAE trained for `objective`."""
    return TRAINED.format(expansion=r"\d+", k=r"\d+", tokens=r"\d+", objective=objective, seed=r"\d+")


def grid(pattern):
    """`pattern` filled in for every cell of the study's grid."""
    cells = config["grid"]
    saes = [
        TRAINED.format(expansion=expansion, k=k, tokens=tokens, objective=objective, seed=seed)
        for expansion in cells["expansion"]
        for k in cells["k"]
        for tokens in cells["tokens"]
        for objective in cells["objectives"]
        for seed in cells["seeds_at"].get(str(tokens), cells["seeds"])
    ]
    return [
        path
        for subject in cells["subjects"]
        for path in expand(
            pattern,
            subject=subject,
            corpus=cells["corpora"],
            ell=[f"{layer:02d}" for layer in cells["layers"][subject]],
            sae=saes,
        )
    ]


def imports(pattern):
    """`pattern` filled in for every SAE somebody else trained."""
    return [
        path
        for name, block in config["imports"].items()
        for path in expand(
            pattern,
            subject=block["subject"],
            corpus=block["corpus"],
            ell=f"{block['layer']:02d}",
            sae=name,
        )
    ]


def layers(pattern):
    """`pattern` filled in for every hooked layer of the study."""
    return sorted(set(grid(pattern)))


def corpora(pattern):
    """`pattern` filled in for every subject and corpus of the study."""
    return expand(pattern, subject=config["grid"]["subjects"], corpus=config["grid"]["corpora"])


def asked_for(key, paths):
    """`paths`, for a target that makes no sense while the list at `key` is empty."""
    block, name = key.split(".")

    def files(wildcards):
        if not config[block][name]:
            raise WorkflowError(f"config.yaml: {key} is empty, so there is nothing to make")
        return paths

    return files


def suite(pattern, layers="layers"):
    """`pattern` filled in for all that the cross-lingual suite runs."""
    asked = config["crosslingual"]
    return sorted(
        {
            path
            for subject in asked["subjects"]
            for path in expand(
                pattern,
                subject=subject,
                prompts=asked["prompts"],
                ell=[f"{ell:02d}" for ell in asked[layers].get(subject, asked["layers"][subject])],
                k_sub=asked["k_sub"],
                source=asked["sources"],
                penalty=asked["penalties"],
            )
        }
    )


def table_of(name):
    """A table of the cross-lingual study, as a report item."""
    return report(
        f"results/studies/{{study}}/crosslingual_{name}.csv",
        caption=f"../workflow/report/crosslingual_{name}_table.rst",
        category="Cross-lingual",
        labels={"study": "{study}", "what": f"{name}, table".replace("_", " ")},
    )


def own_files(section, name, wildcards):
    """The user's own files behind a block of `section`: editing one makes the artifact anew."""
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
