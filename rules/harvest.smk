# Activations of the hooked layers, each store in parts that one job gathers; spectra of all layers.


rule harvest_part:
    message: "harvest {wildcards.subject} layer {wildcards.ell}, {wildcards.split}, part {wildcards.part} of {wildcards.parts}"
    input:
        **MODEL,
        **rows("{split}"),
    output: temp(directory(f"{LAYER}/.activations-{{split}}.part-{{part}}-of-{{parts}}"))
    log: log_of("harvest", PART)
    benchmark: timing_of("harvest", PART)
    params: spec=spec("harvest", "harvest")
    threads: THREADS
    resources: **compute("harvest")
    script: "../workflow/scripts/part.py"


rule harvest:
    message: "harvest {wildcards.subject} layer {wildcards.ell}, {wildcards.split}"
    input:
        subject=f"{SUBJECT}/subject.json",
        tokens=f"{CORPUS}/tokens-{{split}}.json",
        parts=parts("harvest", "activations-{split}"),
    output:
        manifest=f"{LAYER}/activations-{{split}}.json",
        store=directory(f"{LAYER}/activations-{{split}}.zarr"),
    log: log_of("harvest")
    benchmark: timing_of("harvest")
    params: spec=spec("harvest", "harvest")
    resources: **request("harvest")
    script: "../workflow/scripts/gather.py"


rule eigenspectra:
    message: "spectra {wildcards.subject}, all layers"
    input:
        **MODEL,
        **rows("train"),
    output:
        manifest=f"{CORPUS}/spectra.json",
        store=directory(f"{CORPUS}/spectra.zarr"),
        table=report(
            f"{CORPUS}/spectra.csv",
            caption="../workflow/report/spectra.rst",
            category="Spectra",
            labels={"subject": "{subject}", "corpus": "{corpus}", "what": "table"},
        ),
    log: log_of("spectra")
    benchmark: timing_of("spectra")
    params: spec=spec("spectra", "spectra")
    threads: THREADS
    resources: **compute("spectra")
    script: "../workflow/scripts/evaluate.py"
