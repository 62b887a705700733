# What an error costs: gradients and output-Fisher probes of the hooked layers, the sensitivity
# scores of every SAE, attention after patching, and the study's tables of them.


rule gradients_part:
    message: "gradients {wildcards.subject} layer {wildcards.ell}, eval, part {wildcards.part} of {wildcards.parts}"
    input:
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
        tokens=f"{CORPUS}/tokens-eval.json",
        token_store=ancient(f"{CORPUS}/tokens-eval.zarr"),
    output: temp(directory(f"{LAYER}/.gradients-eval.part-{{part}}-of-{{parts}}"))
    log: "logs/{subject}/{corpus}/L{ell}/gradients-eval-part{part}of{parts}.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/gradients-eval-part{part}of{parts}.tsv"
    params: spec=spec("gradients")
    threads: THREADS
    resources: **compute("gradients")
    script: "../workflow/scripts/gradients.py"


rule gradients:
    message: "gradients {wildcards.subject} layer {wildcards.ell}, eval"
    input:
        subject="results/{subject}/subject.json",
        tokens=f"{CORPUS}/tokens-eval.json",
        parts=parts("gradients", "gradients-eval"),
    output:
        manifest=f"{LAYER}/gradients-eval.json",
        store=directory(f"{LAYER}/gradients-eval.zarr"),
    log: "logs/{subject}/{corpus}/L{ell}/gradients-eval.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/gradients-eval.tsv"
    params: spec=spec("gradients")
    resources: **request("gradients")
    script: "../workflow/scripts/gather_gradients.py"


rule probes_part:
    message: "probes {wildcards.subject} layer {wildcards.ell}, {wildcards.split}, part {wildcards.part} of {wildcards.parts}"
    input:
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
        tokens=f"{CORPUS}/tokens-{{split}}.json",
        token_store=ancient(f"{CORPUS}/tokens-{{split}}.zarr"),
    output: temp(directory(f"{LAYER}/.probes-{{split}}.part-{{part}}-of-{{parts}}"))
    log: "logs/{subject}/{corpus}/L{ell}/probes-{split}-part{part}of{parts}.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/probes-{split}-part{part}of{parts}.tsv"
    params: spec=spec("probes")
    threads: THREADS
    resources: **compute("probes")
    script: "../workflow/scripts/probes.py"


rule probes:
    message: "probes {wildcards.subject} layer {wildcards.ell}, {wildcards.split}"
    input:
        subject="results/{subject}/subject.json",
        tokens=f"{CORPUS}/tokens-{{split}}.json",
        parts=parts("probes", "probes-{split}"),
    output:
        manifest=f"{LAYER}/probes-{{split}}.json",
        store=directory(f"{LAYER}/probes-{{split}}.zarr"),
    log: "logs/{subject}/{corpus}/L{ell}/probes-{split}.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/probes-{split}.tsv"
    params: spec=spec("probes")
    resources: **request("probes")
    script: "../workflow/scripts/gather_probes.py"


rule calibration:
    message: "calibration {wildcards.subject} layer {wildcards.ell}: synthetic errors"
    input:
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
        tokens=f"{CORPUS}/tokens-eval.json",
        token_store=ancient(f"{CORPUS}/tokens-eval.zarr"),
        activations=f"{LAYER}/activations-eval.json",
        store=ancient(f"{LAYER}/activations-eval.zarr"),
        probes=f"{LAYER}/probes-eval.json",
        probe_store=ancient(f"{LAYER}/probes-eval.zarr"),
    output:
        manifest=f"{LAYER}/calibration.json",
        table=f"{LAYER}/calibration.parquet",
    log: "logs/{subject}/{corpus}/L{ell}/calibration.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/calibration.tsv"
    params: spec=spec("calibration")
    threads: THREADS
    resources: **compute("calibration")
    script: "../workflow/scripts/calibration.py"


rule sensitivity:
    message: "sensitivity SAE {wildcards.subject} layer {wildcards.ell} {wildcards.sae}"
    input:
        activations=f"{LAYER}/activations-eval.json",
        store=ancient(f"{LAYER}/activations-eval.zarr"),
        gradients=f"{LAYER}/gradients-eval.json",
        gradient_store=ancient(f"{LAYER}/gradients-eval.zarr"),
        probes=f"{LAYER}/probes-eval.json",
        probe_store=ancient(f"{LAYER}/probes-eval.zarr"),
        sae=f"{SAE}/sae.json",
        cfg=ancient(f"{SAE}/cfg.json"),
        weights=ancient(f"{SAE}/sae_weights.safetensors"),
    output:
        manifest=f"{SAE}/sensitivity.json",
        table=f"{SAE}/sensitivity.parquet",
    log: "logs/{subject}/{corpus}/L{ell}/sensitivity-{sae}.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/sensitivity-{sae}.tsv"
    params: spec=spec("sensitivity")
    threads: THREADS
    resources: **compute("sensitivity")
    script: "../workflow/scripts/sensitivity.py"


rule attention:
    message: "attention SAE {wildcards.subject} layer {wildcards.ell} {wildcards.sae}"
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
        manifest=f"{SAE}/attention.json",
        table=f"{SAE}/attention.parquet",
    log: "logs/{subject}/{corpus}/L{ell}/attention-{sae}.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/attention-{sae}.tsv"
    params: spec=spec("attention")
    threads: THREADS
    resources: **compute("attention")
    script: "../workflow/scripts/attention.py"


rule leaderboard:
    message: "leaderboard of study {wildcards.study}"
    input:
        grid="results/studies/{study}/grid.json",
        table=ancient("results/studies/{study}/grid.csv"),
    output:
        manifest="results/studies/{study}/leaderboard.json",
        table=report(
            "results/studies/{study}/leaderboard.csv",
            caption="../workflow/report/leaderboard_table.rst",
            category="Sensitivity",
            labels={"study": "{study}", "what": "leaderboard, table"},
        ),
    log: "logs/studies/{study}/leaderboard.log"
    benchmark: "logs/studies/{study}/leaderboard.tsv"
    params: spec=spec("leaderboard")
    script: "../workflow/scripts/leaderboard.py"


rule calibration_table:
    message: "calibration table of study {wildcards.study}"
    input:
        synthetic=layers(f"{LAYER}/calibration.json"),
        synthetic_tables=ancient(layers(f"{LAYER}/calibration.parquet")),
        per_sequence=grid(f"{SAE}/per_sequence.json"),
        per_sequence_tables=ancient(grid(f"{SAE}/per_sequence.parquet")),
        sensitivity=grid(f"{SAE}/sensitivity.json"),
        sensitivity_tables=ancient(grid(f"{SAE}/sensitivity.parquet")),
    output:
        manifest="results/studies/{study}/calibration.json",
        table=report(
            "results/studies/{study}/calibration.csv",
            caption="../workflow/report/calibration_table.rst",
            category="Sensitivity",
            labels={"study": "{study}", "what": "calibration, table"},
        ),
        points="results/studies/{study}/calibration_points.csv",
    log: "logs/studies/{study}/calibration_table.log"
    benchmark: "logs/studies/{study}/calibration_table.tsv"
    params:
        spec=spec("calibration_table"),
        members=members(grid(f"{SAE}/sensitivity.json")),
    script: "../workflow/scripts/calibration_table.py"


rule attention_table:
    message: "attention table of study {wildcards.study}"
    input:
        manifests=grid(f"{SAE}/attention.json"),
        tables=ancient(grid(f"{SAE}/attention.parquet")),
    output:
        manifest="results/studies/{study}/attention.json",
        table=report(
            "results/studies/{study}/attention.csv",
            caption="../workflow/report/attention_table.rst",
            category="Sensitivity",
            labels={"study": "{study}", "what": "attention, table"},
        ),
    log: "logs/studies/{study}/attention_table.log"
    benchmark: "logs/studies/{study}/attention_table.tsv"
    params:
        spec=spec("attention_table"),
        members=members(grid(f"{SAE}/attention.json")),
    script: "../workflow/scripts/attention_table.py"
