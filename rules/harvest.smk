# Activations of the hooked layers, each store in parts that one job gathers; spectra of all layers.


rule harvest_part:
    message: "harvest {wildcards.subject} layer {wildcards.ell}, {wildcards.split}, part {wildcards.part} of {wildcards.parts}"
    input:
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
        tokens=f"{CORPUS}/tokens-{{split}}.json",
        token_store=ancient(f"{CORPUS}/tokens-{{split}}.zarr"),
    output: temp(directory(f"{LAYER}/.activations-{{split}}.part-{{part}}-of-{{parts}}"))
    log: "logs/{subject}/{corpus}/L{ell}/harvest-{split}-part{part}of{parts}.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/harvest-{split}-part{part}of{parts}.tsv"
    params: spec=spec("harvest")
    threads: THREADS
    resources: **compute("harvest")
    script: "../workflow/scripts/harvest.py"


rule harvest:
    message: "harvest {wildcards.subject} layer {wildcards.ell}, {wildcards.split}"
    input:
        subject="results/{subject}/subject.json",
        tokens=f"{CORPUS}/tokens-{{split}}.json",
        parts=parts("harvest", "activations-{split}"),
    output:
        manifest=f"{LAYER}/activations-{{split}}.json",
        store=directory(f"{LAYER}/activations-{{split}}.zarr"),
    log: "logs/{subject}/{corpus}/L{ell}/harvest-{split}.log"
    benchmark: "logs/{subject}/{corpus}/L{ell}/harvest-{split}.tsv"
    params: spec=spec("harvest")
    resources: **request("harvest")
    script: "../workflow/scripts/gather_activations.py"


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
    resources: **compute("spectra")
    script: "../workflow/scripts/spectra.py"
