from snakemake.utils import min_version

min_version("9.20")

configfile: "config.yaml"

include: "rules/common.smk"
include: "rules/subjects.smk"
include: "rules/harvest.smk"
include: "rules/saes.smk"
include: "rules/figures.smk"

# What to ask for: plain `snakemake`, or one of these by name.
FIGURES = ["proxy_gap", "rate_distortion", "pr_canyon", "loss_curves"]

localrules: all, spectra, saes, proxy_gap, figures, verify


rule all:
    default_target: True
    input: f"{STUDY}/grid.json", expand(f"{STUDY}/figures/{{figure}}.json", figure=FIGURES)


rule spectra:
    input: expand(f"{CORPUS}/spectra.json", subject=config["grid"]["subjects"], corpus=config["grid"]["corpora"])


rule saes:
    input: grid(f"{SAE}/sae.json")


rule proxy_gap:
    input: f"{STUDY}/grid.json", expand(f"{STUDY}/figures/{{figure}}.json", figure=["proxy_gap", "rate_distortion"])


rule figures:
    input: expand(f"{STUDY}/figures/{{figure}}.json", figure=FIGURES)


rule verify:
    input: rules.all.input
    log: "logs/verify.log"
    benchmark: "logs/verify.tsv"
    params: configs=expand("--configfile {path}", path=workflow.configfiles)
    shell: "python -m streamgauge.cli verify {params.configs} results 2>&1 | tee {log}"
