from snakemake.utils import min_version

min_version("9.20")

configfile: "config.yaml"

include: "rules/common.smk"
include: "rules/subjects.smk"
include: "rules/harvest.smk"
include: "rules/saes.smk"
include: "rules/figures.smk"
include: "rules/targets.smk"
