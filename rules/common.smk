# The validated configuration, the paths of artifacts, and what every rule takes from the registry of
# stages (src/streamgauge/artifacts/stages.py): its key, its log, what it asks of a cluster.
import hashlib
import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

SRC = os.path.join(ROOT, "src")
if os.path.isdir(SRC):
    # jobs are children of this process and import the library from here, installed or not
    sys.path.insert(0, SRC)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SRC, os.environ.get("PYTHONPATH")]))

ODD = r"[^\w@%+=:,./-]"  # what a shell does not take as it stands
if re.search(ODD, sys.executable):
    # Snakemake starts jobs by this name and does not quote it; from here it may be a plain one
    python, sys.executable = sys.executable, os.path.relpath(sys.executable)
    if re.search(ODD, sys.executable):
        raise WorkflowError(
            f"Snakemake cannot start jobs with {python}: a shell reads that path differently. Run"
            " in the folder that holds the virtual environment, or make it in another:"
            " make env VENV=$HOME/streamgauge-env"
        )

from streamgauge.artifacts import blocks, claims, keys, verify
from streamgauge.artifacts.figures import FIGURES as DRAWN
from streamgauge.artifacts.stages import CROSS_TABLES, STAGES
from streamgauge.base import paths, project, yaml_file
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.paths import (
    ARD,
    BASIS,
    CORPUS,
    CROSS,
    FIGURES,
    LAYER,
    PATCHING,
    PROMPTS,
    SAE,
    STUDY,
    SUBJECT,
    SUBSPACE,
)
from streamgauge.planning import cells, job_requests, replacing
from streamgauge.planning import config as configuration
from streamgauge.planning.grid import check_grid, shape_of
from streamgauge.planning.parts import n_parts

if workflow.modifier.path_modifier.replace_prefix("results/x") != "results/x":
    raise WorkflowError(
        "streamgauge as a module takes no prefix: its artifacts refer to each other below results."
        " Leave it out, and run the workflow in a folder of its own (snakemake --directory)."
    )

try:
    if BASE in workflow.configfiles:
        for path in workflow.configfiles:
            yaml_file.read(path)  # what Snakemake lets pass: tags, keys given twice
    else:  # a module: its `config` lies over ours
        config = configuration.merge(yaml_file.read(os.path.join(ROOT, "config.yaml")), config)
    config = configuration.validate(config)
    check_grid(config, "results")
    # jobs do what the main process has decided
    OTHERS = replacing.others(config) if workflow.is_main_process else []
except StreamgaugeError as error:
    raise WorkflowError(str(error))


def refuse_to_replace(asked=None):
    """Stop before any work if what is asked for would replace what another study uses."""
    try:
        replacing.check(config, OTHERS, asked=asked)
    except StreamgaugeError as error:
        raise WorkflowError(str(error))


refuse_to_replace()

wildcard_constraints:
    **paths.WILDCARDS,


class Alone:
    """Runs the workflow while no other run writes the same artifacts, from whatever checkout.

    Snakemake's lock is that of one checkout, and Snakemake removes what a job is to make anew:
    who makes what has to be settled before it looks at what is there.
    """

    def __init__(self):
        self.execute, workflow.execute = workflow.execute, self
        self.record = f"studies/{config['study']}/study.json"

    def __call__(self, executor_plugin, **settings):
        if executor_plugin.common_settings.dryrun_exec or not workflow.is_main_process:
            return self.execute(executor_plugin=executor_plugin, **settings)
        asked = [STAGES[stage].path.format(**place) for stage, place in cells.artifacts(config)]
        try:
            for folder in (".snakemake", "logs"):
                claims.writable(folder)
            self.claim = claims.acquire("results", self.names([*asked, *workflow.dag_settings.targets]))
        except StreamgaugeError as error:
            raise WorkflowError(str(error))
        try:
            os.environ[claims.RUN] = self.claim.id
            # since the configuration was read, another study may have begun
            OTHERS[:] = replacing.others(config)
            refuse_to_replace()
            replacing.mend_record(config)
            return self.execute(executor_plugin=executor_plugin, **settings)
        finally:
            self.claim.release()

    def narrow(self):
        """Claim what the jobs write that are to run."""
        jobs = list(workflow.dag.needrun_jobs())
        try:
            self.claim.narrow(
                self.names(file for job in jobs for file in job.output),
                self.names(file for job in jobs for file in job.input),
            )
        except StreamgaugeError as error:
            raise WorkflowError(str(error))

    def names(self, paths):
        """Paths below results, and the record of the study: runs of one study take turns."""
        below = (path.removeprefix("results/") for path in paths if path.startswith("results/"))
        return {self.record, *below}


ALONE = Alone()

# before the first job; not on a dry run, nor in the processes of jobs
onstart:
    replacing.leave_record(config, {file for job in workflow.dag.jobs for file in job.output})
    ALONE.narrow()

if not workflow.modifier.is_main_snakefile():  # Snakemake calls no handler of a module

    def both(log, first=workflow._onstart, then=onstart):
        first(log)
        then()

    workflow._onstart = both

ARD_BASIS = BASIS.replace("{k_sub}", f"{config['ard']['k_sub']}")
HEADINGS = {drawn.category: [] for drawn in DRAWN.values()}  # of the report: their figures
for name, drawn in DRAWN.items():
    HEADINGS[drawn.category].append(name)
CROSS_FIGURES = HEADINGS["Cross-lingual"]
# how often verdicts err does not depend on the study: made when asked for
FIGURE_NAMES = [name for name in DRAWN if name not in ("verdict_calibration", *CROSS_FIGURES)]
SUFFIXES = ["json", "svg", "png"]
SCRATCH = [name for name, block in config["subjects"].items() if block["source"] == "scratch"]

# two jobs side by side on this machine; a job on a cluster, and whoever submits it, do not count
CORES = None if workflow.remote_exec else workflow.resource_settings.cores
THREADS = job_requests.threads(config, CORES)


# --- what a rule takes from the registry --------------------------------------------------------
def spec(stage, *reads):
    """The key of an artifact as a function of wildcards only (Snakemake tracks no other).

    `reads` are the blocks of the configuration it depends on, shown in the rule and held against
    the registry. Which part of a store a job writes is no part of the store's key.
    """
    assert set(reads) == set(STAGES[stage].keys), f"{stage} depends on {STAGES[stage].keys}"

    def of(wildcards):
        named = {name: wildcards[name] for name in wildcards.keys() if name not in ("part", "parts")}
        made = keys.spec(ROOT, config, stage, named)
        # a target that the configuration does not ask for
        refuse_to_replace({STAGES[stage].path.format(**named): (stage, named)})
        return made

    of.stage = stage
    return of


def log_of(stage, part=""):
    """The log of a stage's job: the path of its artifact, below logs."""
    return f"logs/{STAGES[stage].path.removeprefix('results/').removesuffix('.json')}{part}.log"


def timing_of(stage, part=""):
    """The benchmark of a stage's job, beside its log."""
    return log_of(stage, part).removesuffix(".log") + ".tsv"


PART = "-part{part}of{parts}"


def together(group):
    """The group of a rule whose short jobs share a job on a cluster.

    Only whoever submits has groups: inside the job its members run one after another, and would
    else ask for the cores of all of them at once. Without a cluster a plan reads better without.
    """
    return group if workflow.resource_settings.nodes and not workflow.remote_exec else None


def request(stage):
    """Memory and minutes that a job over one subject asks for, more with every attempt."""

    def asked(name):
        def of(wildcards, attempt):
            subject = config["subjects"][wildcards.subject]
            shape = shape_of(wildcards.subject, subject, "results")
            return job_requests.job(config, stage, dict(wildcards), shape, attempt)[name]

        return of

    return {"mem_mb": asked("mem_mb"), "runtime": asked("runtime")}


def compute(stage):
    """What a job that runs a model or trains asks for."""
    # on CPU `gpu` stays 0, so that a profile's limit of one GPU holds nothing back
    gpu = int(config["device"] == "cuda")
    return {"gpu": gpu, "device": config["device"], **request(stage)}


# --- inputs and outputs that several rules share --------------------------------------------------
# Manifests plainly, data behind `ancient`: what runs again follows content, not clocks.
MODEL = {"subject": f"{SUBJECT}/subject.json", "model": ancient(f"{SUBJECT}/model")}
FITTED = {
    "manifest": f"{SAE}/sae.json",
    "cfg": f"{SAE}/cfg.json",
    "weights": f"{SAE}/sae_weights.safetensors",
    "history": f"{SAE}/training.csv",
}
TRAINED = {
    "sae": FITTED["manifest"],
    "cfg": ancient(FITTED["cfg"]),
    "weights": ancient(FITTED["weights"]),
}
INSIDE_Z = {
    "states": f"{PROMPTS}/states.json",
    "state_store": ancient(f"{PROMPTS}/states.zarr"),
    "basis": f"{BASIS}.json",
    "basis_store": ancient(f"{BASIS}.zarr"),
}


def rows(split):
    """Token rows of a split."""
    stem = f"{CORPUS}/tokens-{split}"
    return {"tokens": f"{stem}.json", "token_store": ancient(f"{stem}.zarr")}


def activations(split):
    """The activations of a layer over a split."""
    stem = f"{LAYER}/activations-{split}"
    return {"activations": f"{stem}.json", "store": ancient(f"{stem}.zarr")}


def probes(split):
    """The probes of a layer over a split."""
    stem = f"{LAYER}/probes-{split}"
    return {"probes": f"{stem}.json", "probe_store": ancient(f"{stem}.zarr")}


# --- sets of files ------------------------------------------------------------------------------
def filled(pattern, places):
    """`pattern` filled in for every one of `places`, in their order, each path once."""
    return list(dict.fromkeys(pattern.format(**place) for place in places))


def grid(pattern):
    """`pattern` filled in for every SAE that the study trains."""
    return filled(pattern, cells.saes(config))


def imports(pattern):
    """`pattern` filled in for every SAE somebody else trained."""
    return filled(pattern, cells.imports(config))


def layers(pattern):
    """`pattern` filled in for every hooked layer of the study."""
    return sorted(filled(pattern, cells.layers(config)))


def corpora(pattern):
    """`pattern` filled in for every subject and corpus of the study."""
    return filled(pattern, cells.corpora(config))


def suite(pattern, key="layers"):
    """`pattern` filled in for all that the cross-lingual suite runs."""
    return sorted(filled(pattern, cells.suite(config, key)))


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
        n = n_parts(config, stage, wildcards.corpus, split)
        stem = f"{LAYER}/.{store}".format(**wildcards)
        return [f"{stem}.part-{i}-of-{n}" for i in range(n)]

    return receipts


def own_files(section, name):
    """The user's own files behind a block of `section`: editing one makes the artifact anew."""
    return lambda wildcards: blocks.own_files(config[section][wildcards[name]])


def one_of(names):
    """A constraint that lets a wildcard be one of `names` and nothing else."""
    return "|".join(map(re.escape, names)) or "(?!)"


def asked_for(key, paths):
    """`paths`, for a target that makes no sense while the list at `key` is empty."""
    block, name = key.split(".")

    def files(wildcards):
        if not config[block][name]:
            raise WorkflowError(f"config.yaml: {key} is empty, so there is nothing to make")
        return paths

    return files


def verified(log):
    """Check all that lies below results, as `streamgauge verify` does; a problem fails the job."""
    flags = project.flags(workflow.main_snakefile, workflow.overwrite_configfiles)
    with open(log, "w", encoding="utf-8") as file:

        def say(line):
            print(line, flush=True)
            print(line, file=file, flush=True)

        well = verify.verify(["results"], Path(ROOT), config, say, flags)
    if not well:
        raise WorkflowError(f"Artifacts do not fit; {log} says which.")


# --- items of the report ------------------------------------------------------------------------
def table(name, category, what, caption=None):
    """A table of the study, as a report item."""
    return report(
        f"{STUDY}/{name}.csv",
        caption=f"../workflow/report/{caption or name}.rst",
        category=category,
        labels={"study": "{study}", "what": f"{what}table"},
    )


def figure(name):
    """The outputs of figure `name`."""
    labels = {"study": "{study}", "what": name.replace("_", " ")}
    caption = f"../workflow/report/{name}.rst"
    drawn = report(
        f"{FIGURES}/{name}.svg", caption=caption, category=DRAWN[name].category, labels=labels
    )
    return {"manifest": f"{FIGURES}/{name}.json", "svg": drawn, "png": f"{FIGURES}/{name}.png"}
