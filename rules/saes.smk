# Train one SAE, patch it into the model, score it; gather the study's grid.


rule train_sae:
    message: "train SAE {wildcards.subject} layer {wildcards.ell} {wildcards.sae}"
    input:
        **activations("train"),
    output: **FITTED
    wildcard_constraints: sae=paths.trained_for("mse", config["sae"]["recipe"])
    log: log_of("train_sae")
    benchmark: timing_of("train_sae")
    params: spec=spec("train_sae", "sae")
    threads: THREADS
    resources: **compute("train_sae")
    script: "../workflow/scripts/sae.py"


rule train_behavioral:
    message: "train SAE {wildcards.subject} layer {wildcards.ell} {wildcards.sae}"
    input:
        **activations("train"),
        **probes("train"),
    output: **FITTED
    wildcard_constraints: sae=paths.trained_for("behavioral", config["sae"]["recipe"])
    log: log_of("train_behavioral")
    benchmark: timing_of("train_behavioral")
    params: spec=spec("train_behavioral", "sae")
    threads: THREADS
    resources: **compute("train_behavioral")
    script: "../workflow/scripts/sae.py"


rule train_e2e:
    message: "train SAE {wildcards.subject} layer {wildcards.ell} {wildcards.sae}"
    input:
        **activations("train"),
        **MODEL,
        **rows("train"),
    output: **FITTED
    wildcard_constraints: sae=paths.trained_for("e2e", config["sae"]["recipe"])
    log: log_of("train_e2e")
    benchmark: timing_of("train_e2e")
    params: spec=spec("train_e2e", "sae")
    threads: THREADS
    resources: **compute("train_e2e")
    script: "../workflow/scripts/sae.py"


rule baseline:
    message: "baseline {wildcards.subject} layer {wildcards.ell}: zero and mean ablation"
    input:
        **MODEL,
        **rows("eval"),
        **activations("eval"),
    output:
        manifest=f"{LAYER}/baseline.json",
        table=f"{LAYER}/baseline.parquet",
    log: log_of("baseline")
    benchmark: timing_of("baseline")
    params: spec=spec("baseline", "evaluate")
    threads: THREADS
    resources: **compute("baseline")
    script: "../workflow/scripts/evaluate.py"


rule evaluate:
    message: "evaluate SAE {wildcards.subject} layer {wildcards.ell} {wildcards.sae}"
    input:
        **MODEL,
        **rows("eval"),
        **activations("eval"),
        **TRAINED,
    output:
        manifest=f"{SAE}/per_sequence.json",
        table=f"{SAE}/per_sequence.parquet",
        latents=f"{SAE}/latents.parquet",
    log: log_of("evaluate")
    benchmark: timing_of("evaluate")
    params: spec=spec("evaluate", "evaluate")
    threads: THREADS
    resources: **compute("evaluate")
    script: "../workflow/scripts/evaluate.py"


rule score:
    message: "score SAE {wildcards.subject} layer {wildcards.ell} {wildcards.sae}"
    input:
        sae=f"{SAE}/sae.json",
        per_sequence=f"{SAE}/per_sequence.json",
        table=ancient(f"{SAE}/per_sequence.parquet"),
        latents=ancient(f"{SAE}/latents.parquet"),
        baseline=f"{LAYER}/baseline.json",
        baseline_table=ancient(f"{LAYER}/baseline.parquet"),
        sensitivity=f"{SAE}/sensitivity.json",
        sensitivity_table=ancient(f"{SAE}/sensitivity.parquet"),
    output: manifest=f"{SAE}/scores.json"
    log: log_of("score")
    benchmark: timing_of("score")
    group: together("scores")
    params: spec=spec("score", "statistics")
    script: "../workflow/scripts/table.py"


rule grid:
    message: "grid table of study {wildcards.study}"
    input: scores=grid(f"{SAE}/scores.json")
    output:
        manifest=f"{STUDY}/grid.json",
        table=table("grid", "Scores", ""),
    log: log_of("grid")
    benchmark: timing_of("grid")
    group: together("tables")
    params:
        spec=spec("grid"),
        members=members(grid(f"{SAE}/scores.json")),
    script: "../workflow/scripts/table.py"
