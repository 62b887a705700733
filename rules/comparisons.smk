# A study's answers: scales, budgets, sparsities and depths compared, dimensions read by mutual
# information, hypotheses adjudicated, published cells beside measured ones.


rule comparisons:
    message: "comparisons of study {wildcards.study}"
    input:
        per_sequence=grid(f"{SAE}/per_sequence.json"),
        per_sequence_tables=ancient(grid(f"{SAE}/per_sequence.parquet")),
        grid="results/studies/{study}/grid.json",
        grid_table=ancient("results/studies/{study}/grid.csv"),
        tokens=corpora(f"{CORPUS}/tokens-eval.json"),
    output:
        manifest="results/studies/{study}/comparisons.json",
        deltas=report(
            "results/studies/{study}/deltas.csv",
            caption="../workflow/report/deltas_table.rst",
            category="Proxy gap",
            labels={"study": "{study}", "what": "deltas, table"},
        ),
        budgets=report(
            "results/studies/{study}/budgets.csv",
            caption="../workflow/report/budgets_table.rst",
            category="Proxy gap",
            labels={"study": "{study}", "what": "budgets, table"},
        ),
        correlations=report(
            "results/studies/{study}/correlations.csv",
            caption="../workflow/report/correlations.rst",
            category="Proxy gap",
            labels={"study": "{study}", "what": "correlations, table"},
        ),
        kstar=report(
            "results/studies/{study}/kstar.csv",
            caption="../workflow/report/kstar_table.rst",
            category="Proxy gap",
            labels={"study": "{study}", "what": "k*, table"},
        ),
    log: "logs/studies/{study}/comparisons.log"
    benchmark: "logs/studies/{study}/comparisons.tsv"
    params:
        spec=spec("comparisons"),
        members=members(grid(f"{SAE}/per_sequence.json")),
    script: "../workflow/scripts/comparisons.py"


rule depth_profile_table:
    message: "depth profile of study {wildcards.study}"
    input:
        spectra=corpora(f"{CORPUS}/spectra.json"),
        spectra_tables=ancient(corpora(f"{CORPUS}/spectra.csv")),
        comparisons="results/studies/{study}/comparisons.json",
        budgets=ancient("results/studies/{study}/budgets.csv"),
    output:
        manifest="results/studies/{study}/depth_profile.json",
        table=report(
            "results/studies/{study}/depth_profile.csv",
            caption="../workflow/report/depth_profile_table.rst",
            category="Spectra",
            labels={"study": "{study}", "what": "depth profile, table"},
        ),
    log: "logs/studies/{study}/depth_profile_table.log"
    benchmark: "logs/studies/{study}/depth_profile_table.tsv"
    params:
        spec=spec("depth_profile_table"),
        members=members(corpora(f"{CORPUS}/spectra.json")),
    script: "../workflow/scripts/depth_profile_table.py"


rule critics:
    message: "critics {wildcards.subject} layer {wildcards.ell}"
    input:
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
        tokens=f"{CORPUS}/tokens-train.json",
        token_store=ancient(f"{CORPUS}/tokens-train.zarr"),
        activations=f"{LAYER}/activations-train.json",
        store=ancient(f"{LAYER}/activations-train.zarr"),
    output:
        manifest=f"{LAYER}/critics.json",
        table=f"{LAYER}/critics.csv",
    log: "logs/{subject}/{corpus}/L{ell}/critics.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/critics.tsv"
    params: spec=spec("critics")
    threads: THREADS
    resources: **compute("critics")
    script: "../workflow/scripts/critics.py"


rule critics_table:
    message: "critics table of study {wildcards.study}"
    input:
        critics=layers(f"{LAYER}/critics.json"),
        critics_tables=ancient(layers(f"{LAYER}/critics.csv")),
        spectra=corpora(f"{CORPUS}/spectra.json"),
        spectra_tables=ancient(corpora(f"{CORPUS}/spectra.csv")),
    output:
        manifest="results/studies/{study}/critics.json",
        table=report(
            "results/studies/{study}/critics.csv",
            caption="../workflow/report/critics_table.rst",
            category="Spectra",
            labels={"study": "{study}", "what": "critics, table"},
        ),
    log: "logs/studies/{study}/critics_table.log"
    benchmark: "logs/studies/{study}/critics_table.tsv"
    params:
        spec=spec("critics_table"),
        members=members(layers(f"{LAYER}/critics.json")),
    script: "../workflow/scripts/critics_table.py"


rule verdicts:
    message: "verdicts of study {wildcards.study}"
    input:
        comparisons="results/studies/{study}/comparisons.json",
        deltas=ancient("results/studies/{study}/deltas.csv"),
        budgets=ancient("results/studies/{study}/budgets.csv"),
        grid="results/studies/{study}/grid.json",
        grid_table=ancient("results/studies/{study}/grid.csv"),
        critics="results/studies/{study}/critics.json",
        critics_table=ancient("results/studies/{study}/critics.csv"),
    output:
        manifest="results/studies/{study}/verdicts.json",
        page=report(
            "results/studies/{study}/verdicts.html",
            caption="../workflow/report/verdicts.rst",
            category="Verdicts",
            labels={"study": "{study}", "what": "verdicts"},
        ),
    log: "logs/studies/{study}/verdicts.log"
    benchmark: "logs/studies/{study}/verdicts.tsv"
    params: spec=spec("verdicts")
    script: "../workflow/scripts/verdicts.py"


rule simulation:
    message: "simulated worlds for the verdicts of study {wildcards.study}"
    output:
        manifest="results/studies/{study}/verdict_calibration.json",
        table="results/studies/{study}/verdict_calibration.csv",
    log: "logs/studies/{study}/simulation.log"
    benchmark: "logs/studies/{study}/simulation.tsv"
    params: spec=spec("simulation")
    script: "../workflow/scripts/simulation.py"


rule published:
    message: "published cells beside study {wildcards.study}"
    input:
        grid="results/studies/{study}/grid.json",
        table=ancient("results/studies/{study}/grid.csv"),
        subjects=expand("results/{subject}/subject.json", subject=config["grid"]["subjects"]),
        cells="resources/published/cells.csv",
    output:
        manifest="results/studies/{study}/published.json",
        table=report(
            "results/studies/{study}/published.csv",
            caption="../workflow/report/published.rst",
            category="Proxy gap",
            labels={"study": "{study}", "what": "published beside measured, table"},
        ),
    log: "logs/studies/{study}/published.log"
    benchmark: "logs/studies/{study}/published.tsv"
    params: spec=spec("published")
    script: "../workflow/scripts/published.py"
