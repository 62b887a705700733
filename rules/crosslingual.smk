# The cross-lingual suite: subspaces read off attention weights, paired problems in two languages,
# what the residual stream does with them, and the study's tables, page and figures.


rule geometry:
    message: "weight geometry of {wildcards.subject}"
    input:
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
    output:
        manifest=f"{CROSS}/geometry.json",
        heads=f"{CROSS}/heads.csv",
        layers=f"{CROSS}/layers.csv",
        similarity=f"{CROSS}/similarity.csv",
    log: "logs/{subject}/crosslingual/geometry.log"
    benchmark: "logs/{subject}/crosslingual/geometry.tsv"
    params: spec=spec("geometry")
    threads: THREADS
    resources: **request("geometry")
    script: "../workflow/scripts/geometry.py"


rule basis:
    message: "basis of Z, {wildcards.subject} layer {wildcards.ell} k_sub {wildcards.k_sub}"
    input:
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
    output:
        manifest=f"{BASIS}.json",
        store=directory(f"{BASIS}.zarr"),
    log: "logs/{subject}/crosslingual/basis/L{ell}-k{k_sub}.log"
    benchmark: "logs/{subject}/crosslingual/basis/L{ell}-k{k_sub}.tsv"
    params: spec=spec("basis")
    threads: THREADS
    resources: **request("basis")
    script: "../workflow/scripts/basis.py"


rule prompts:
    message: "prompts {wildcards.prompts} for {wildcards.subject}"
    input:
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
        file=lambda w: config["prompts"][w.prompts]["path"],
    output:
        manifest=f"{PROMPTS}/prompts.json",
        table=f"{PROMPTS}/prompts.parquet",
    wildcard_constraints: prompts=one_of(config["prompts"])
    log: "logs/{subject}/crosslingual/{prompts}/prompts.log"
    benchmark: "logs/{subject}/crosslingual/{prompts}/prompts.tsv"
    params: spec=spec("prompts")
    script: "../workflow/scripts/prompts.py"


rule states:
    message: "states of {wildcards.subject} on prompts {wildcards.prompts}"
    input:
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
        prompts=f"{PROMPTS}/prompts.json",
        table=ancient(f"{PROMPTS}/prompts.parquet"),
    output:
        manifest=f"{PROMPTS}/states.json",
        store=directory(f"{PROMPTS}/states.zarr"),
    log: "logs/{subject}/crosslingual/{prompts}/states.log"
    benchmark: "logs/{subject}/crosslingual/{prompts}/states.tsv"
    params: spec=spec("states")
    threads: THREADS
    resources: **compute("states")
    script: "../workflow/scripts/states.py"


rule separation:
    message: "separation in Z, {wildcards.subject} {wildcards.prompts} layer {wildcards.ell} k_sub {wildcards.k_sub}"
    input:
        states=f"{PROMPTS}/states.json",
        state_store=ancient(f"{PROMPTS}/states.zarr"),
        basis=f"{BASIS}.json",
        basis_store=ancient(f"{BASIS}.zarr"),
    output:
        manifest=f"{SUBSPACE}/separation.json",
        table=f"{SUBSPACE}/separation.csv",
    log: "logs/{subject}/crosslingual/{prompts}/L{ell}-k{k_sub}/separation.log"
    benchmark: "logs/{subject}/crosslingual/{prompts}/L{ell}-k{k_sub}/separation.tsv"
    params: spec=spec("separation")
    script: "../workflow/scripts/separation.py"


rule updates:
    message: "updates inside Z, {wildcards.subject} {wildcards.prompts} layer {wildcards.ell} k_sub {wildcards.k_sub}"
    input:
        states=f"{PROMPTS}/states.json",
        state_store=ancient(f"{PROMPTS}/states.zarr"),
        basis=f"{BASIS}.json",
        basis_store=ancient(f"{BASIS}.zarr"),
    output:
        manifest=f"{SUBSPACE}/updates.json",
        table=f"{SUBSPACE}/updates.csv",
    log: "logs/{subject}/crosslingual/{prompts}/L{ell}-k{k_sub}/updates.log"
    benchmark: "logs/{subject}/crosslingual/{prompts}/L{ell}-k{k_sub}/updates.tsv"
    params: spec=spec("updates")
    script: "../workflow/scripts/updates.py"


rule bridge:
    message: "bridge inside Z, {wildcards.subject} {wildcards.prompts} layer {wildcards.ell} k_sub {wildcards.k_sub}"
    input:
        states=f"{PROMPTS}/states.json",
        state_store=ancient(f"{PROMPTS}/states.zarr"),
        basis=f"{BASIS}.json",
        basis_store=ancient(f"{BASIS}.zarr"),
    output:
        manifest=f"{SUBSPACE}/bridge.json",
        table=f"{SUBSPACE}/bridge.csv",
        spectra=f"{SUBSPACE}/bridge_spectra.csv",
    log: "logs/{subject}/crosslingual/{prompts}/L{ell}-k{k_sub}/bridge.log"
    benchmark: "logs/{subject}/crosslingual/{prompts}/L{ell}-k{k_sub}/bridge.tsv"
    params: spec=spec("bridge")
    script: "../workflow/scripts/bridge.py"


rule patching:
    message: "patching Z ({wildcards.source}), {wildcards.subject} {wildcards.prompts} layer {wildcards.ell} k_sub {wildcards.k_sub}"
    input:
        subject="results/{subject}/subject.json",
        model=ancient("results/{subject}/model"),
        prompts=f"{PROMPTS}/prompts.json",
        prompt_table=ancient(f"{PROMPTS}/prompts.parquet"),
        states=f"{PROMPTS}/states.json",
        state_store=ancient(f"{PROMPTS}/states.zarr"),
        basis=f"{BASIS}.json",
        basis_store=ancient(f"{BASIS}.zarr"),
    output:
        manifest=f"{PATCHING}.json",
        outputs=f"{PATCHING}.parquet",
        rates=f"{PATCHING}.csv",
        page=report(
            f"{PATCHING}.html",
            caption="../workflow/report/patching.rst",
            category="Cross-lingual",
            labels={
                "study": "{subject} {prompts}",
                "what": "patching table, layer {ell}, k_sub {k_sub}, {source}",
            },
        ),
    log: "logs/{subject}/crosslingual/{prompts}/L{ell}-k{k_sub}/patching-{source}.log"
    benchmark: "logs/{subject}/crosslingual/{prompts}/L{ell}-k{k_sub}/patching-{source}.tsv"
    params: spec=spec("patching")
    threads: THREADS
    resources: **compute("patching")
    script: "../workflow/scripts/patching.py"


rule ard:
    message: "ARD-MMD, {wildcards.subject} {wildcards.prompts} layer {wildcards.ell} penalty {wildcards.penalty}"
    input:
        states=f"{PROMPTS}/states.json",
        state_store=ancient(f"{PROMPTS}/states.zarr"),
        basis=f"{ARD_BASIS}.json",
        basis_store=ancient(f"{ARD_BASIS}.zarr"),
    output:
        manifest=f"{ARD}.json",
        store=directory(f"{ARD}.zarr"),
        table=f"{ARD}.csv",
    log: "logs/{subject}/crosslingual/{prompts}/L{ell}/ard-{penalty}.log"
    benchmark: "logs/{subject}/crosslingual/{prompts}/L{ell}/ard-{penalty}.tsv"
    params: spec=spec("ard")
    threads: THREADS
    resources: **compute("ard")
    script: "../workflow/scripts/ard.py"


rule crosslingual_tables:
    message: "cross-lingual tables of study {wildcards.study}"
    input:
        geometry=suite(f"{CROSS}/geometry.json"),
        heads_tables=ancient(suite(f"{CROSS}/heads.csv")),
        layers_tables=ancient(suite(f"{CROSS}/layers.csv")),
        similarity_tables=ancient(suite(f"{CROSS}/similarity.csv")),
        separation=suite(f"{SUBSPACE}/separation.json"),
        separation_tables=ancient(suite(f"{SUBSPACE}/separation.csv")),
        updates=suite(f"{SUBSPACE}/updates.json"),
        updates_tables=ancient(suite(f"{SUBSPACE}/updates.csv")),
        bridge=suite(f"{SUBSPACE}/bridge.json"),
        bridge_tables=ancient(suite(f"{SUBSPACE}/bridge.csv")),
        bridge_spectra_tables=ancient(suite(f"{SUBSPACE}/bridge_spectra.csv")),
        patching=suite(f"{PATCHING}.json"),
        patching_tables=ancient(suite(f"{PATCHING}.csv")),
        ard=suite(f"{ARD}.json", "ard_layers"),
        ard_tables=ancient(suite(f"{ARD}.csv", "ard_layers")),
    output:
        manifest="results/studies/{study}/crosslingual.json",
        **{name: table_of(name) for name in CROSS_TABLES},
    log: "logs/studies/{study}/crosslingual_tables.log"
    benchmark: "logs/studies/{study}/crosslingual_tables.tsv"
    params:
        spec=spec("crosslingual_tables"),
        members=members(suite(f"{PATCHING}.json") + suite(f"{ARD}.json", "ard_layers")),
    script: "../workflow/scripts/crosslingual_tables.py"


rule crosslingual_page:
    message: "cross-lingual findings of study {wildcards.study}"
    input:
        manifest="results/studies/{study}/crosslingual.json",
        **{
            name: ancient(f"results/studies/{{study}}/crosslingual_{name}.csv")
            for name in CROSS_TABLES
        },
    output:
        manifest="results/studies/{study}/crosslingual_page.json",
        page=report(
            "results/studies/{study}/crosslingual.html",
            caption="../workflow/report/crosslingual_page.rst",
            category="Cross-lingual",
            labels={"study": "{study}", "what": "findings"},
        ),
    log: "logs/studies/{study}/crosslingual_page.log"
    benchmark: "logs/studies/{study}/crosslingual_page.tsv"
    params: spec=spec("crosslingual_page")
    script: "../workflow/scripts/crosslingual_page.py"


rule figure_crosslingual_geometry:
    message: "figure crosslingual_geometry"
    input:
        crosslingual="results/studies/{study}/crosslingual.json",
        table=ancient("results/studies/{study}/crosslingual_layers.csv"),
    output: **figure("crosslingual_geometry", "Cross-lingual")
    log: "logs/studies/{study}/figure_crosslingual_geometry.log"
    benchmark: "logs/studies/{study}/figure_crosslingual_geometry.tsv"
    params: spec=spec("figure_crosslingual_geometry")
    script: "../workflow/scripts/figure_crosslingual_geometry.py"


rule figure_crosslingual_updates:
    message: "figure crosslingual_updates"
    input:
        crosslingual="results/studies/{study}/crosslingual.json",
        table=ancient("results/studies/{study}/crosslingual_updates.csv"),
    output: **figure("crosslingual_updates", "Cross-lingual")
    log: "logs/studies/{study}/figure_crosslingual_updates.log"
    benchmark: "logs/studies/{study}/figure_crosslingual_updates.tsv"
    params: spec=spec("figure_crosslingual_updates")
    script: "../workflow/scripts/figure_crosslingual_updates.py"


rule figure_crosslingual_patching:
    message: "figure crosslingual_patching"
    input:
        crosslingual="results/studies/{study}/crosslingual.json",
        table=ancient("results/studies/{study}/crosslingual_patching.csv"),
    output: **figure("crosslingual_patching", "Cross-lingual")
    log: "logs/studies/{study}/figure_crosslingual_patching.log"
    benchmark: "logs/studies/{study}/figure_crosslingual_patching.tsv"
    params: spec=spec("figure_crosslingual_patching")
    script: "../workflow/scripts/figure_crosslingual_patching.py"


rule figure_crosslingual_ard:
    message: "figure crosslingual_ard"
    input:
        crosslingual="results/studies/{study}/crosslingual.json",
        table=ancient("results/studies/{study}/crosslingual_ard.csv"),
    output: **figure("crosslingual_ard", "Cross-lingual")
    log: "logs/studies/{study}/figure_crosslingual_ard.log"
    benchmark: "logs/studies/{study}/figure_crosslingual_ard.tsv"
    params: spec=spec("figure_crosslingual_ard")
    script: "../workflow/scripts/figure_crosslingual_ard.py"


rule figure_crosslingual_spectrum:
    message: "figure crosslingual_spectrum"
    input:
        manifests=suite(f"{ARD}.json", "ard_layers"),
        stores=ancient(suite(f"{ARD}.zarr", "ard_layers")),
    output: **figure("crosslingual_spectrum", "Cross-lingual")
    log: "logs/studies/{study}/figure_crosslingual_spectrum.log"
    benchmark: "logs/studies/{study}/figure_crosslingual_spectrum.tsv"
    params:
        spec=spec("figure_crosslingual_spectrum"),
        members=members(suite(f"{ARD}.json", "ard_layers")),
    script: "../workflow/scripts/figure_crosslingual_spectrum.py"


rule figure_crosslingual_bridge:
    message: "figure crosslingual_bridge"
    input:
        crosslingual="results/studies/{study}/crosslingual.json",
        table=ancient("results/studies/{study}/crosslingual_bridge.csv"),
        spectra=ancient("results/studies/{study}/crosslingual_bridge_spectra.csv"),
    output: **figure("crosslingual_bridge", "Cross-lingual")
    log: "logs/studies/{study}/figure_crosslingual_bridge.log"
    benchmark: "logs/studies/{study}/figure_crosslingual_bridge.tsv"
    params: spec=spec("figure_crosslingual_bridge")
    script: "../workflow/scripts/figure_crosslingual_bridge.py"
