# The cross-lingual suite: subspaces read off attention weights, paired problems in two languages,
# what the residual stream does with them, and the study's tables, page and figures.


rule geometry:
    message: "weight geometry of {wildcards.subject}"
    input:
        **MODEL,
    output:
        manifest=f"{CROSS}/geometry.json",
        heads=f"{CROSS}/heads.csv",
        layers=f"{CROSS}/layers.csv",
        similarity=f"{CROSS}/similarity.csv",
    log: log_of("geometry")
    benchmark: timing_of("geometry")
    params: spec=spec("geometry", "geometry", "statistics")
    threads: THREADS
    resources: **request("geometry")
    script: "../workflow/scripts/crosslingual.py"


rule basis:
    message: "basis of Z, {wildcards.subject} layer {wildcards.ell} k_sub {wildcards.k_sub}"
    input:
        **MODEL,
    output:
        manifest=f"{BASIS}.json",
        store=directory(f"{BASIS}.zarr"),
    log: log_of("basis")
    benchmark: timing_of("basis")
    params: spec=spec("basis")
    threads: THREADS
    resources: **request("basis")
    script: "../workflow/scripts/crosslingual.py"


rule prompts:
    message: "prompts {wildcards.prompts} for {wildcards.subject}"
    input:
        **MODEL,
        file=lambda w: project.resource(config["prompts"][w.prompts]["path"]),
    output:
        manifest=f"{PROMPTS}/prompts.json",
        table=f"{PROMPTS}/prompts.parquet",
    wildcard_constraints: prompts=one_of(config["prompts"])
    log: log_of("prompts")
    benchmark: timing_of("prompts")
    params: spec=spec("prompts", "prompts")
    script: "../workflow/scripts/text.py"


rule states:
    message: "states of {wildcards.subject} on prompts {wildcards.prompts}"
    input:
        **MODEL,
        prompts=f"{PROMPTS}/prompts.json",
        table=ancient(f"{PROMPTS}/prompts.parquet"),
    output:
        manifest=f"{PROMPTS}/states.json",
        store=directory(f"{PROMPTS}/states.zarr"),
    log: log_of("states")
    benchmark: timing_of("states")
    params: spec=spec("states", "states")
    threads: THREADS
    resources: **compute("states")
    script: "../workflow/scripts/crosslingual.py"


rule separation:
    message: "separation in Z, {wildcards.subject} {wildcards.prompts} layer {wildcards.ell} k_sub {wildcards.k_sub}"
    input:
        **INSIDE_Z,
    output:
        manifest=f"{SUBSPACE}/separation.json",
        table=f"{SUBSPACE}/separation.csv",
    log: log_of("separation")
    benchmark: timing_of("separation")
    group: together("subspaces")
    params: spec=spec("separation", "separation", "statistics")
    script: "../workflow/scripts/crosslingual.py"


rule updates:
    message: "updates inside Z, {wildcards.subject} {wildcards.prompts} layer {wildcards.ell} k_sub {wildcards.k_sub}"
    input:
        **INSIDE_Z,
    output:
        manifest=f"{SUBSPACE}/updates.json",
        table=f"{SUBSPACE}/updates.csv",
    log: log_of("updates")
    benchmark: timing_of("updates")
    group: together("subspaces")
    params: spec=spec("updates", "updates", "statistics")
    script: "../workflow/scripts/crosslingual.py"


rule bridge:
    message: "bridge inside Z, {wildcards.subject} {wildcards.prompts} layer {wildcards.ell} k_sub {wildcards.k_sub}"
    input:
        **INSIDE_Z,
    output:
        manifest=f"{SUBSPACE}/bridge.json",
        table=f"{SUBSPACE}/bridge.csv",
        spectra=f"{SUBSPACE}/bridge_spectra.csv",
    log: log_of("bridge")
    benchmark: timing_of("bridge")
    group: together("subspaces")
    params: spec=spec("bridge", "bridge", "statistics")
    script: "../workflow/scripts/crosslingual.py"


rule patching:
    message: "patching Z ({wildcards.source}), {wildcards.subject} {wildcards.prompts} layer {wildcards.ell} k_sub {wildcards.k_sub}"
    input:
        **MODEL,
        prompts=f"{PROMPTS}/prompts.json",
        prompt_table=ancient(f"{PROMPTS}/prompts.parquet"),
        **INSIDE_Z,
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
    log: log_of("patching")
    benchmark: timing_of("patching")
    params: spec=spec("patching", "patching", "dissociation", "statistics")
    threads: THREADS
    resources: **compute("patching")
    script: "../workflow/scripts/crosslingual.py"


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
    log: log_of("ard")
    benchmark: timing_of("ard")
    params: spec=spec("ard", "ard", "statistics")
    threads: THREADS
    resources: **compute("ard")
    script: "../workflow/scripts/crosslingual.py"


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
        manifest=f"{STUDY}/crosslingual.json",
        **{
            name: table(f"crosslingual_{name}", "Cross-lingual", f"{name}, ".replace("_", " "), f"crosslingual_{name}_table")
            for name in CROSS_TABLES
        },
    log: log_of("crosslingual_tables")
    benchmark: timing_of("crosslingual_tables")
    group: together("crosslingual")
    params:
        spec=spec("crosslingual_tables"),
        members=members(suite(f"{PATCHING}.json") + suite(f"{ARD}.json", "ard_layers")),
    script: "../workflow/scripts/table.py"


rule crosslingual_page:
    message: "cross-lingual findings of study {wildcards.study}"
    input:
        manifest=f"{STUDY}/crosslingual.json",
        **{
            name: ancient(f"{STUDY}/crosslingual_{name}.csv")
            for name in CROSS_TABLES
        },
    output:
        manifest=f"{STUDY}/crosslingual_page.json",
        page=report(
            f"{STUDY}/crosslingual.html",
            caption="../workflow/report/crosslingual_page.rst",
            category="Cross-lingual",
            labels={"study": "{study}", "what": "findings"},
        ),
    log: log_of("crosslingual_page")
    benchmark: timing_of("crosslingual_page")
    group: together("crosslingual")
    params: spec=spec("crosslingual_page")
    script: "../workflow/scripts/page.py"
