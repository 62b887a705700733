# Language models and token rows.


rule subject:
    message: "subject {wildcards.subject}: weights to safetensors"
    input:
        lambda w: own_files("subjects", "subject", w),
    output:
        manifest="results/{subject}/subject.json",
        model=directory("results/{subject}/model"),
    wildcard_constraints: subject=one_of(set(config["subjects"]) - set(SCRATCH))
    log: "logs/{subject}/subject.log"
    benchmark: "logs/{subject}/subject.tsv"
    params:
        spec=spec("subject"),
        members=lambda w: members(own_files("subjects", "subject", w)),
    threads: THREADS
    resources: **request("subject")
    script: "../workflow/scripts/subject.py"


rule pretrain:
    message: "pretrain {wildcards.subject}"
    input:
        lambda w: provenance.own_files(config["corpora"][config["pretrain"]["corpus"]]),
    output:
        manifest="results/{subject}/subject.json",
        model=directory("results/{subject}/model"),
    wildcard_constraints: subject=one_of(SCRATCH)
    log: "logs/{subject}/pretrain.log"
    benchmark: "logs/{subject}/pretrain.tsv"
    params: spec=spec("pretrain")
    threads: THREADS
    resources: **compute("pretrain")
    script: "../workflow/scripts/pretrain.py"


rule tokens:
    message: "tokens {wildcards.corpus} for {wildcards.subject}, {wildcards.split}"
    input:
        lambda w: own_files("corpora", "corpus", w),
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
    output:
        manifest=f"{CORPUS}/tokens-{{split}}.json",
        store=directory(f"{CORPUS}/tokens-{{split}}.zarr"),
    log: "logs/{subject}/{corpus}/tokens-{split}.log"
    benchmark: "logs/{subject}/{corpus}/tokens-{split}.tsv"
    params: spec=spec("tokens")
    threads: THREADS
    resources: **request("tokens")
    script: "../workflow/scripts/tokens.py"
