from snakemake.utils import min_version

min_version("9.20")

configfile: "config.yaml"
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
localrules: all, spectra, saes, proxy_gap, sensitivities, verdict, verdict_calibration, audits
localrules: crosslingual, figures, verify

TABLES = f"{STUDY}/{{name}}.{{suffix}}"
FIGURES = f"{STUDY}/figures/{{name}}.{{suffix}}"
TABLE = expand(TABLES, name="grid", suffix=["json", "csv"])
COMPARED = expand(TABLES, name=["deltas", "budgets", "correlations", "kstar"], suffix="csv")
GAP = TABLE + COMPARED + expand(TABLES, name=["comparisons", "published"], suffix="json")
PROFILES = expand(TABLES, name=["depth_profile", "critics"], suffix=["json", "csv"])
COSTS = expand(TABLES, name=["leaderboard", "calibration", "attention"], suffix=["json", "csv"])
VERDICTS = expand(TABLES, name="verdicts", suffix=["json", "html"])
AUDITS = imports(f"{SAE}/audit.json") + imports(f"{SAE}/audit.md")
SUFFIXES = ["json", "svg", "png"]
CROSSLINGUAL = (
    expand(TABLES, name="crosslingual", suffix=["json", "html"])
    + expand(TABLES, name=[f"crosslingual_{name}" for name in CROSS_TABLES], suffix="csv")
    + suite(f"{PATCHING}.html")
    + expand(FIGURES, name=CROSS_FIGURES, suffix=SUFFIXES)
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
        expand(FIGURES, name=FIGURE_NAMES, suffix=SUFFIXES),


rule spectra:
    input: corpora(f"{CORPUS}/spectra.json"), corpora(f"{CORPUS}/spectra.csv")


rule saes:
    input: grid(f"{SAE}/sae.json")


rule proxy_gap:
    input:
        GAP,
        expand(
            FIGURES,
            name=["proxy_gap", "rate_distortion", "deltas", "budgets", "kstar"],
            suffix=SUFFIXES,
        ),


rule sensitivities:
    input: COSTS, expand(FIGURES, name=["calibration", "leaderboard", "attention"], suffix=SUFFIXES)


rule verdict:
    input: VERDICTS


rule verdict_calibration:
    input:
        f"{STUDY}/verdict_calibration.csv",
        expand(FIGURES, name="verdict_calibration", suffix=SUFFIXES),


rule audits:
    input: AUDITS


rule crosslingual:
    input: asked_for("crosslingual.subjects", CROSSLINGUAL)


rule figures:
    input: expand(FIGURES, name=FIGURE_NAMES, suffix=SUFFIXES)


rule verify:
    message: "verify every artifact"
    input: rules.all.input
    log: "logs/verify.log"
    benchmark: "logs/verify.tsv"
    params: configs=expand("--configfile {path}", path=workflow.configfiles)
    shell: "python -m streamgauge.cli verify {params.configs} results 2>&1 | tee {log}"
