# A study's answers: scales, budgets, sparsities and depths compared, dimensions read by mutual
# information, hypotheses adjudicated, published cells beside measured ones.


rule comparisons:
    message: "comparisons of study {wildcards.study}"
    input:
        per_sequence=grid(f"{SAE}/per_sequence.json"),
        per_sequence_tables=ancient(grid(f"{SAE}/per_sequence.parquet")),
        grid=f"{STUDY}/grid.json",
        grid_table=ancient(f"{STUDY}/grid.csv"),
        tokens=corpora(f"{CORPUS}/tokens-eval.json"),
    output:
        manifest=f"{STUDY}/comparisons.json",
        deltas=table("deltas", "Proxy gap", "deltas, ", "deltas_table"),
        budgets=table("budgets", "Proxy gap", "budgets, ", "budgets_table"),
        correlations=table("correlations", "Proxy gap", "correlations, "),
        kstar=table("kstar", "Proxy gap", "k*, ", "kstar_table"),
    log: log_of("comparisons")
    benchmark: timing_of("comparisons")
    group: together("tables")
    params:
        spec=spec("comparisons", "comparisons", "statistics", "grid"),
        members=members(grid(f"{SAE}/per_sequence.json")),
    script: "../workflow/scripts/table.py"


rule depth_profile_table:
    message: "depth profile of study {wildcards.study}"
    input:
        spectra=corpora(f"{CORPUS}/spectra.json"),
        spectra_tables=ancient(corpora(f"{CORPUS}/spectra.csv")),
        comparisons=f"{STUDY}/comparisons.json",
        budgets=ancient(f"{STUDY}/budgets.csv"),
    output:
        manifest=f"{STUDY}/depth_profile.json",
        table=table("depth_profile", "Spectra", "depth profile, ", "depth_profile_table"),
    log: log_of("depth_profile_table")
    benchmark: timing_of("depth_profile_table")
    group: together("tables")
    params:
        spec=spec("depth_profile_table"),
        members=members(corpora(f"{CORPUS}/spectra.json")),
    script: "../workflow/scripts/table.py"


rule critics:
    message: "critics {wildcards.subject} layer {wildcards.ell}"
    input:
        **MODEL,
        **rows("train"),
        **activations("train"),
    output:
        manifest=f"{LAYER}/critics.json",
        table=f"{LAYER}/critics.csv",
    log: log_of("critics")
    benchmark: timing_of("critics")
    params: spec=spec("critics", "critics")
    threads: THREADS
    resources: **compute("critics")
    script: "../workflow/scripts/evaluate.py"


rule critics_table:
    message: "critics table of study {wildcards.study}"
    input:
        critics=layers(f"{LAYER}/critics.json"),
        critics_tables=ancient(layers(f"{LAYER}/critics.csv")),
        spectra=corpora(f"{CORPUS}/spectra.json"),
        spectra_tables=ancient(corpora(f"{CORPUS}/spectra.csv")),
    output:
        manifest=f"{STUDY}/critics.json",
        table=table("critics", "Spectra", "critics, ", "critics_table"),
    log: log_of("critics_table")
    benchmark: timing_of("critics_table")
    group: together("tables")
    params:
        spec=spec("critics_table"),
        members=members(layers(f"{LAYER}/critics.json")),
    script: "../workflow/scripts/table.py"


rule verdicts:
    message: "verdicts of study {wildcards.study}"
    input:
        comparisons=f"{STUDY}/comparisons.json",
        deltas=ancient(f"{STUDY}/deltas.csv"),
        budgets=ancient(f"{STUDY}/budgets.csv"),
        grid=f"{STUDY}/grid.json",
        grid_table=ancient(f"{STUDY}/grid.csv"),
        critics=f"{STUDY}/critics.json",
        critics_table=ancient(f"{STUDY}/critics.csv"),
    output:
        manifest=f"{STUDY}/verdicts.json",
        page=report(
            f"{STUDY}/verdicts.html",
            caption="../workflow/report/verdicts.rst",
            category="Verdicts",
            labels={"study": "{study}", "what": "verdicts"},
        ),
    log: log_of("verdicts")
    benchmark: timing_of("verdicts")
    group: together("tables")
    params: spec=spec("verdicts", "verdicts", "statistics")
    script: "../workflow/scripts/page.py"


rule simulation:
    message: "simulated worlds for the verdicts of study {wildcards.study}"
    output:
        manifest=f"{STUDY}/verdict_calibration.json",
        table=f"{STUDY}/verdict_calibration.csv",
    log: log_of("simulation")
    benchmark: timing_of("simulation")
    params: spec=spec("simulation", "simulation", "verdicts", "statistics")
    script: "../workflow/scripts/table.py"


rule published:
    message: "published cells beside study {wildcards.study}"
    input:
        grid=f"{STUDY}/grid.json",
        table=ancient(f"{STUDY}/grid.csv"),
        subjects=expand(f"{SUBJECT}/subject.json", subject=config["grid"]["subjects"]),
        cells=project.resource("resources/published/cells.csv"),
    output:
        manifest=f"{STUDY}/published.json",
        table=table("published", "Proxy gap", "published beside measured, "),
    log: log_of("published")
    benchmark: timing_of("published")
    group: together("tables")
    params: spec=spec("published")
    script: "../workflow/scripts/table.py"
