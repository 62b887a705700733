import os

from snakemake.utils import min_version

min_version("9.20")

# the folder of this file; the working directory and `workflow.basedir` may be another workflow's
ROOT = str(workflow.current_basedir)
BASE = os.path.relpath(os.path.join(ROOT, "config.yaml"))

configfile: BASE
report: "workflow/report/workflow.rst"

include: "rules/common.smk"
include: "rules/subjects.smk"
include: "rules/harvest.smk"
include: "rules/saes.smk"
include: "rules/sensitivity.smk"
include: "rules/imports.smk"
include: "rules/crosslingual.smk"
include: "rules/comparisons.smk"
include: "rules/figures.smk"

# What to ask for: plain `snakemake`, or one of these by name.
HERE = STUDY.format(study=config["study"])
TABLES = f"{HERE}/{{name}}.{{suffix}}"
DRAWINGS = f"{HERE}/figures/{{name}}.{{suffix}}"
TABLE = expand(TABLES, name="grid", suffix=["json", "csv"])
COMPARED = expand(TABLES, name=["deltas", "budgets", "correlations", "kstar"], suffix="csv")
GAP = TABLE + COMPARED + expand(TABLES, name=["comparisons", "published"], suffix="json")
PROFILES = expand(TABLES, name=["depth_profile", "critics"], suffix=["json", "csv"])
COSTS = expand(TABLES, name=["leaderboard", "calibration", "attention"], suffix=["json", "csv"])
VERDICTS = expand(TABLES, name="verdicts", suffix=["json", "html"])
AUDITS = imports(f"{SAE}/audit.json") + imports(f"{SAE}/audit.md")
CROSSLINGUAL = (
    expand(TABLES, name="crosslingual", suffix=["json", "html"])
    + expand(TABLES, name=[f"crosslingual_{name}" for name in CROSS_TABLES], suffix="csv")
    + suite(f"{PATCHING}.html")
    + expand(DRAWINGS, name=CROSS_FIGURES, suffix=SUFFIXES)
)


rule all:
    default_target: True
    input:
        GAP,
        PROFILES,
        COSTS,
        VERDICTS,
        AUDITS,
        CROSSLINGUAL if config["crosslingual"]["subjects"] else [],
        expand(DRAWINGS, name=FIGURE_NAMES, suffix=SUFFIXES),


rule spectra:
    input: corpora(f"{CORPUS}/spectra.json"), corpora(f"{CORPUS}/spectra.csv")


rule saes:
    input: grid(f"{SAE}/sae.json")


rule proxy_gap:
    input: GAP, expand(DRAWINGS, name=HEADINGS["Proxy gap"], suffix=SUFFIXES)


rule sensitivities:
    input: COSTS, expand(DRAWINGS, name=HEADINGS["Sensitivity"], suffix=SUFFIXES)


rule verdict:
    input: VERDICTS


rule verdict_calibration:
    input:
        f"{HERE}/verdict_calibration.csv",
        expand(DRAWINGS, name="verdict_calibration", suffix=SUFFIXES),


rule audits:
    input: AUDITS


rule crosslingual:
    input: asked_for("crosslingual.subjects", CROSSLINGUAL)


rule figures:
    input: expand(DRAWINGS, name=FIGURE_NAMES, suffix=SUFFIXES)


rule verify:
    localrule: True
    message: "verify every artifact"
    input: rules.all.input
    log: "logs/verify.log"
    run: verified(log[0])
