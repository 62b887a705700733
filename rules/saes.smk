# Train one SAE, patch it into the model, score it; gather the study's grid.


rule train_sae:
    message: "train SAE {wildcards.subject} layer {wildcards.ell} {wildcards.sae}"
    input:
        activations=f"{LAYER}/activations-train.json",
        store=ancient(f"{LAYER}/activations-train.zarr"),
    output:
        manifest=f"{SAE}/sae.json",
        cfg=f"{SAE}/cfg.json",
        weights=f"{SAE}/sae_weights.safetensors",
        history=f"{SAE}/training.csv",
    wildcard_constraints: sae=trained("mse")
    log: "logs/{subject}/{corpus}/L{ell}/train-{sae}.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/train-{sae}.tsv"
    params: spec=spec("train_sae")
    threads: THREADS
    resources: **compute("train_sae")
    script: "../workflow/scripts/train_sae.py"


rule train_behavioral:
    message: "train SAE {wildcards.subject} layer {wildcards.ell} {wildcards.sae}"
    input:
        activations=f"{LAYER}/activations-train.json",
        store=ancient(f"{LAYER}/activations-train.zarr"),
        probes=f"{LAYER}/probes-train.json",
        probe_store=ancient(f"{LAYER}/probes-train.zarr"),
    output:
        manifest=f"{SAE}/sae.json",
        cfg=f"{SAE}/cfg.json",
        weights=f"{SAE}/sae_weights.safetensors",
        history=f"{SAE}/training.csv",
    wildcard_constraints: sae=trained("behavioral")
    log: "logs/{subject}/{corpus}/L{ell}/train-{sae}.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/train-{sae}.tsv"
    params: spec=spec("train_behavioral")
    threads: THREADS
    resources: **compute("train_behavioral")
    script: "../workflow/scripts/train_behavioral.py"


rule train_e2e:
    message: "train SAE {wildcards.subject} layer {wildcards.ell} {wildcards.sae}"
    input:
        activations=f"{LAYER}/activations-train.json",
        store=ancient(f"{LAYER}/activations-train.zarr"),
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
        tokens=f"{CORPUS}/tokens-train.json",
        token_store=ancient(f"{CORPUS}/tokens-train.zarr"),
    output:
        manifest=f"{SAE}/sae.json",
        cfg=f"{SAE}/cfg.json",
        weights=f"{SAE}/sae_weights.safetensors",
        history=f"{SAE}/training.csv",
    wildcard_constraints: sae=trained("e2e")
    log: "logs/{subject}/{corpus}/L{ell}/train-{sae}.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/train-{sae}.tsv"
    params: spec=spec("train_e2e")
    threads: THREADS
    resources: **compute("train_e2e")
    script: "../workflow/scripts/train_e2e.py"


rule baseline:
    message: "baseline {wildcards.subject} layer {wildcards.ell}: zero and mean ablation"
    input:
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
        tokens=f"{CORPUS}/tokens-eval.json",
        token_store=ancient(f"{CORPUS}/tokens-eval.zarr"),
        activations=f"{LAYER}/activations-eval.json",
        store=ancient(f"{LAYER}/activations-eval.zarr"),
    output:
        manifest=f"{LAYER}/baseline.json",
        table=f"{LAYER}/baseline.parquet",
    log: "logs/{subject}/{corpus}/L{ell}/baseline.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/baseline.tsv"
    params: spec=spec("baseline")
    threads: THREADS
    resources: **compute("baseline")
    script: "../workflow/scripts/baseline.py"


rule evaluate:
    message: "evaluate SAE {wildcards.subject} layer {wildcards.ell} {wildcards.sae}"
    input:
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
        tokens=f"{CORPUS}/tokens-eval.json",
        token_store=ancient(f"{CORPUS}/tokens-eval.zarr"),
        activations=f"{LAYER}/activations-eval.json",
        store=ancient(f"{LAYER}/activations-eval.zarr"),
        sae=f"{SAE}/sae.json",
        cfg=ancient(f"{SAE}/cfg.json"),
        weights=ancient(f"{SAE}/sae_weights.safetensors"),
    output:
        manifest=f"{SAE}/per_sequence.json",
        table=f"{SAE}/per_sequence.parquet",
        latents=f"{SAE}/latents.parquet",
    log: "logs/{subject}/{corpus}/L{ell}/evaluate-{sae}.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/evaluate-{sae}.tsv"
    params: spec=spec("evaluate")
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
    output: f"{SAE}/scores.json"
    log: "logs/{subject}/{corpus}/L{ell}/score-{sae}.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/score-{sae}.tsv"
    params: spec=spec("score")
    script: "../workflow/scripts/score.py"


rule grid:
    message: "grid table of study {wildcards.study}"
    input: grid(f"{SAE}/scores.json")
    output:
        manifest="results/studies/{study}/grid.json",
        table=report(
            "results/studies/{study}/grid.csv",
            caption="../workflow/report/grid.rst",
            category="Scores",
            labels={"study": "{study}", "what": "table"},
        ),
    log: "logs/studies/{study}/grid.log"
    benchmark: "logs/studies/{study}/grid.tsv"
    params:
        spec=spec("grid"),
        members=members(grid(f"{SAE}/scores.json")),
    script: "../workflow/scripts/grid.py"
