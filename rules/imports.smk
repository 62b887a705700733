# SAEs somebody else trained: read once, scored like any other, judged in a sentence.


rule import_sae:
    message: "import SAE {wildcards.sae} for {wildcards.subject} layer {wildcards.ell}"
    input:
        lambda w: own_files("imports", "sae", w),
        activations=f"{LAYER}/activations-eval.json",
        store=ancient(f"{LAYER}/activations-eval.zarr"),
    output:
        manifest=f"{SAE}/sae.json",
        cfg=f"{SAE}/cfg.json",
        weights=f"{SAE}/sae_weights.safetensors",
    wildcard_constraints: sae=one_of(config["imports"])
    log: "logs/{subject}/{corpus}/L{ell}/import-{sae}.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/import-{sae}.tsv"
    params:
        spec=spec("import_sae"),
        members=lambda w: members(own_files("imports", "sae", w)),
    threads: THREADS
    resources: **request("import_sae")
    script: "../workflow/scripts/import_sae.py"


rule audit:
    message: "audit SAE {wildcards.subject} layer {wildcards.ell} {wildcards.sae}"
    input:
        sae=f"{SAE}/sae.json",
        scores=f"{SAE}/scores.json",
        per_sequence=f"{SAE}/per_sequence.json",
        table=ancient(f"{SAE}/per_sequence.parquet"),
        baseline=f"{LAYER}/baseline.json",
        baseline_table=ancient(f"{LAYER}/baseline.parquet"),
    output:
        manifest=f"{SAE}/audit.json",
        page=report(
            f"{SAE}/audit.md",
            caption="../workflow/report/audit.rst",
            category="Audits",
            labels={"subject": "{subject}", "layer": "{ell}", "SAE": "{sae}"},
        ),
    log: "logs/{subject}/{corpus}/L{ell}/audit-{sae}.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/audit-{sae}.tsv"
    params: spec=spec("audit")
    script: "../workflow/scripts/audit.py"
