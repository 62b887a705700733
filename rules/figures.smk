# Figures of a study: each reads tables and writes SVG, PNG and a manifest. The registry says which
# (src/streamgauge/artifacts/figures.py); those that read more than a study's tables follow by name.


for name, drawn in DRAWN.items():
    if drawn.table:

        rule:
            name: f"figure_{name}"
            message: f"figure {name}"
            input:
                manifest=f"{STUDY}/{drawn.table}.json",
                tables=ancient([f"{STUDY}/{table}.csv" for table in drawn.files]),
            output: **figure(name)
            log: log_of(f"figure_{name}")
            benchmark: timing_of(f"figure_{name}")
            group: together("crosslingual_figures" if name in CROSS_FIGURES else "figures")
            params: spec=spec(f"figure_{name}", "figures")
            script: "../workflow/scripts/figure.py"


rule figure_pr_canyon:
    message: "figure pr_canyon"
    input:
        manifest=corpora(f"{CORPUS}/spectra.json"),
        tables=ancient(corpora(f"{CORPUS}/spectra.csv")),
        hooked=ancient(layers(f"{LAYER}/activations-train.json")),
    output: **figure("pr_canyon")
    log: log_of("figure_pr_canyon")
    benchmark: timing_of("figure_pr_canyon")
    params:
        spec=spec("figure_pr_canyon", "figures"),
        members=members(layers(f"{LAYER}/activations-train.json")),
    script: "../workflow/scripts/figure.py"


rule figure_loss_curves:
    message: "figure loss_curves"
    input:
        manifest=grid(f"{SAE}/sae.json"),
        tables=ancient(grid(f"{SAE}/training.csv")),
    output: **figure("loss_curves")
    log: log_of("figure_loss_curves")
    benchmark: timing_of("figure_loss_curves")
    params:
        spec=spec("figure_loss_curves", "figures"),
        members=members(grid(f"{SAE}/sae.json")),
    script: "../workflow/scripts/figure.py"


rule figure_crosslingual_spectrum:
    message: "figure crosslingual_spectrum"
    input:
        manifest=suite(f"{ARD}.json", "ard_layers"),
        stores=ancient(suite(f"{ARD}.zarr", "ard_layers")),
    output: **figure("crosslingual_spectrum")
    log: log_of("figure_crosslingual_spectrum")
    benchmark: timing_of("figure_crosslingual_spectrum")
    group: together("crosslingual_figures")
    params:
        spec=spec("figure_crosslingual_spectrum", "figures"),
        members=members(suite(f"{ARD}.json", "ard_layers")),
    script: "../workflow/scripts/figure.py"
