# SAEs somebody else trained: read once, scored like any other, judged in a sentence.


rule import_sae:
    message: "import SAE {wildcards.sae} for {wildcards.subject} layer {wildcards.ell}"
    input:
        own_files("imports", "sae"),
        **activations("eval"),
    output:
        manifest=f"{SAE}/sae.json",
        cfg=f"{SAE}/cfg.json",
        weights=f"{SAE}/sae_weights.safetensors",
    wildcard_constraints: sae=one_of(config["imports"])
    log: log_of("import_sae")
    benchmark: timing_of("import_sae")
    params:
        spec=spec("import_sae", "imports"),
        members=lambda w: members(own_files("imports", "sae")(w)),
    threads: THREADS
    resources: **request("import_sae")
    script: "../workflow/scripts/sae.py"


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
    log: log_of("audit")
    benchmark: timing_of("audit")
    group: together("scores")
    params: spec=spec("audit", "statistics")
    script: "../workflow/scripts/page.py"
