# What to ask for: `snakemake`, or one of these by name.
FIGURES = ["proxy_gap", "rate_distortion", "pr_canyon", "loss_curves"]

localrules: all, spectra, saes, proxy_gap, figures, verify


rule all:
    default_target: True
    input: STUDY + "/grid.json", expand(STUDY + "/figures/{figure}.json", figure=FIGURES)


rule spectra:
    input: expand(CORPUS + "/spectra.json", subject=config["grid"]["subjects"], corpus=config["grid"]["corpora"])


rule saes:
    input: grid(SAE + "/sae.json")


rule proxy_gap:
    input: STUDY + "/grid.json", expand(STUDY + "/figures/{figure}.json", figure=["proxy_gap", "rate_distortion"])


rule figures:
    input: expand(STUDY + "/figures/{figure}.json", figure=FIGURES)


rule verify:
    input: rules.all.input
    log: "logs/verify.log"
    benchmark: "logs/verify.tsv"
    params: configs=expand("--configfile {path}", path=workflow.configfiles)
    shell: "python -m streamgauge.cli verify {params.configs} results 2>&1 | tee {log}"
