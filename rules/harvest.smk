# Activations of the hooked layers, and the spectra of all layers.


rule harvest:
    message: "harvest {wildcards.subject} layer {wildcards.ell}, {wildcards.split}"
    input:
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
        tokens=f"{CORPUS}/tokens-{{split}}.json",
        token_store=ancient(f"{CORPUS}/tokens-{{split}}.zarr"),
    output:
        manifest=f"{LAYER}/activations-{{split}}.json",
        store=directory(f"{LAYER}/activations-{{split}}.zarr"),
    log: "logs/{subject}/{corpus}/L{ell}/harvest-{split}.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/harvest-{split}.tsv"
    params: spec=spec("harvest")
    threads: THREADS
    resources: **COMPUTE
    script: "../workflow/scripts/harvest.py"


rule eigenspectra:
    message: "spectra {wildcards.subject}, all layers"
    input:
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
        tokens=f"{CORPUS}/tokens-train.json",
        token_store=ancient(f"{CORPUS}/tokens-train.zarr"),
    output:
        manifest=f"{CORPUS}/spectra.json",
        store=directory(f"{CORPUS}/spectra.zarr"),
        table=report(
            f"{CORPUS}/spectra.csv",
            caption="../workflow/report/spectra.rst",
            category="Spectra",
            labels={"subject": "{subject}", "corpus": "{corpus}", "what": "table"},
        ),
    log: "logs/{subject}/{corpus}/spectra.log"
    benchmark: "logs/{subject}/{corpus}/spectra.tsv"
    params: spec=spec("spectra")
    threads: THREADS
    resources: **COMPUTE
    script: "../workflow/scripts/spectra.py"
