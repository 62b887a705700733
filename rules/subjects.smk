# Language models and token rows.


rule subject:
    message: "subject {wildcards.subject}: weights to safetensors"
    input:
        own_files("subjects", "subject"),
    output:
        manifest=f"{SUBJECT}/subject.json",
        model=directory(f"{SUBJECT}/model"),
    wildcard_constraints: subject=one_of(set(config["subjects"]) - set(SCRATCH))
    log: log_of("subject")
    benchmark: timing_of("subject")
    params:
        spec=spec("subject", "subjects"),
        members=lambda w: members(own_files("subjects", "subject")(w)),
    threads: THREADS
    resources: **request("subject")
    script: "../workflow/scripts/subject.py"


rule pretrain:
    message: "pretrain {wildcards.subject}"
    input:
        lambda w: blocks.own_files(config["corpora"][config["pretrain"]["corpus"]]),
    output:
        manifest=f"{SUBJECT}/subject.json",
        model=directory(f"{SUBJECT}/model"),
    wildcard_constraints: subject=one_of(SCRATCH)
    log: log_of("pretrain")
    benchmark: timing_of("pretrain")
    params: spec=spec("pretrain", "subjects", "pretrain", "corpora")
    threads: THREADS
    resources: **compute("pretrain")
    script: "../workflow/scripts/subject.py"


rule tokens:
    message: "tokens {wildcards.corpus} for {wildcards.subject}, {wildcards.split}"
    input:
        own_files("corpora", "corpus"),
        **MODEL,
    output:
        manifest=f"{CORPUS}/tokens-{{split}}.json",
        store=directory(f"{CORPUS}/tokens-{{split}}.zarr"),
    log: log_of("tokens")
    benchmark: timing_of("tokens")
    params: spec=spec("tokens", "corpora")
    threads: THREADS
    resources: **request("tokens")
    script: "../workflow/scripts/text.py"
