# What an error costs: gradients and output-Fisher probes of the hooked layers, the sensitivity
# scores of every SAE, attention after patching, and the study's tables of them.


rule gradients_part:
    message: "gradients {wildcards.subject} layer {wildcards.ell}, eval, part {wildcards.part} of {wildcards.parts}"
    input:
        **MODEL,
        **rows("eval"),
    output: temp(directory(f"{LAYER}/.gradients-eval.part-{{part}}-of-{{parts}}"))
    log: log_of("gradients", PART)
    benchmark: timing_of("gradients", PART)
    params: spec=spec("gradients", "gradients")
    threads: THREADS
    resources: **compute("gradients")
    script: "../workflow/scripts/part.py"


rule gradients:
    message: "gradients {wildcards.subject} layer {wildcards.ell}, eval"
    input:
        subject=f"{SUBJECT}/subject.json",
        tokens=f"{CORPUS}/tokens-eval.json",
        parts=parts("gradients", "gradients-eval"),
    output:
        manifest=f"{LAYER}/gradients-eval.json",
        store=directory(f"{LAYER}/gradients-eval.zarr"),
    log: log_of("gradients")
    benchmark: timing_of("gradients")
    params: spec=spec("gradients", "gradients")
    resources: **request("gradients")
    script: "../workflow/scripts/gather.py"


rule probes_part:
    message: "probes {wildcards.subject} layer {wildcards.ell}, {wildcards.split}, part {wildcards.part} of {wildcards.parts}"
    input:
        **MODEL,
        **rows("{split}"),
    output: temp(directory(f"{LAYER}/.probes-{{split}}.part-{{part}}-of-{{parts}}"))
    log: log_of("probes", PART)
    benchmark: timing_of("probes", PART)
    params: spec=spec("probes", "probes")
    threads: THREADS
    resources: **compute("probes")
    script: "../workflow/scripts/part.py"


rule probes:
    message: "probes {wildcards.subject} layer {wildcards.ell}, {wildcards.split}"
    input:
        subject=f"{SUBJECT}/subject.json",
        tokens=f"{CORPUS}/tokens-{{split}}.json",
        parts=parts("probes", "probes-{split}"),
    output:
        manifest=f"{LAYER}/probes-{{split}}.json",
        store=directory(f"{LAYER}/probes-{{split}}.zarr"),
    log: log_of("probes")
    benchmark: timing_of("probes")
    params: spec=spec("probes", "probes")
    resources: **request("probes")
    script: "../workflow/scripts/gather.py"


rule calibration:
    message: "calibration {wildcards.subject} layer {wildcards.ell}: synthetic errors"
    input:
        **MODEL,
        **rows("eval"),
        **activations("eval"),
        **probes("eval"),
    output:
        manifest=f"{LAYER}/calibration.json",
        table=f"{LAYER}/calibration.parquet",
    log: log_of("calibration")
    benchmark: timing_of("calibration")
    params: spec=spec("calibration", "calibration")
    threads: THREADS
    resources: **compute("calibration")
    script: "../workflow/scripts/evaluate.py"


rule sensitivity:
    message: "sensitivity SAE {wildcards.subject} layer {wildcards.ell} {wildcards.sae}"
    input:
        **activations("eval"),
        gradients=f"{LAYER}/gradients-eval.json",
        gradient_store=ancient(f"{LAYER}/gradients-eval.zarr"),
        **probes("eval"),
        **TRAINED,
    output:
        manifest=f"{SAE}/sensitivity.json",
        table=f"{SAE}/sensitivity.parquet",
    log: log_of("sensitivity")
    benchmark: timing_of("sensitivity")
    params: spec=spec("sensitivity")
    threads: THREADS
    resources: **compute("sensitivity")
    script: "../workflow/scripts/evaluate.py"


rule attention:
    message: "attention SAE {wildcards.subject} layer {wildcards.ell} {wildcards.sae}"
    input:
        **MODEL,
        **rows("eval"),
        **activations("eval"),
        **TRAINED,
    output:
        manifest=f"{SAE}/attention.json",
        table=f"{SAE}/attention.parquet",
    log: log_of("attention")
    benchmark: timing_of("attention")
    params: spec=spec("attention", "attention")
    threads: THREADS
    resources: **compute("attention")
    script: "../workflow/scripts/evaluate.py"


rule leaderboard:
    message: "leaderboard of study {wildcards.study}"
    input:
        grid=f"{STUDY}/grid.json",
        table=ancient(f"{STUDY}/grid.csv"),
    output:
        manifest=f"{STUDY}/leaderboard.json",
        table=table("leaderboard", "Sensitivity", "leaderboard, ", "leaderboard_table"),
    log: log_of("leaderboard")
    benchmark: timing_of("leaderboard")
    group: together("tables")
    params: spec=spec("leaderboard", "statistics")
    script: "../workflow/scripts/table.py"


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
        manifest=f"{STUDY}/calibration.json",
        table=table("calibration", "Sensitivity", "calibration, ", "calibration_table"),
        points=f"{STUDY}/calibration_points.csv",
    log: log_of("calibration_table")
    benchmark: timing_of("calibration_table")
    group: together("tables")
    params:
        spec=spec("calibration_table", "statistics"),
        members=members(grid(f"{SAE}/sensitivity.json")),
    script: "../workflow/scripts/table.py"


rule attention_table:
    message: "attention table of study {wildcards.study}"
    input:
        manifests=grid(f"{SAE}/attention.json"),
        tables=ancient(grid(f"{SAE}/attention.parquet")),
    output:
        manifest=f"{STUDY}/attention.json",
        table=table("attention", "Sensitivity", "attention, ", "attention_table"),
    log: log_of("attention_table")
    benchmark: timing_of("attention_table")
    group: together("tables")
    params:
        spec=spec("attention_table", "statistics"),
        members=members(grid(f"{SAE}/attention.json")),
    script: "../workflow/scripts/table.py"
