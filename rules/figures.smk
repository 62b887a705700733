# Figures of a study: each reads tables and writes SVG, PNG and a manifest.


rule figure_proxy_gap:
    message: "figure proxy_gap"
    input:
        grid="results/studies/{study}/grid.json",
        table=ancient("results/studies/{study}/grid.csv"),
    output: **figure("proxy_gap", "Proxy gap")
    log: "logs/studies/{study}/figure_proxy_gap.log"
    benchmark: "logs/studies/{study}/figure_proxy_gap.tsv"
    params: spec=spec("figure_proxy_gap")
    script: "../workflow/scripts/figure_proxy_gap.py"


rule figure_rate_distortion:
    message: "figure rate_distortion"
    input:
        grid="results/studies/{study}/grid.json",
        table=ancient("results/studies/{study}/grid.csv"),
    output: **figure("rate_distortion", "Proxy gap")
    log: "logs/studies/{study}/figure_rate_distortion.log"
    benchmark: "logs/studies/{study}/figure_rate_distortion.tsv"
    params: spec=spec("figure_rate_distortion")
    script: "../workflow/scripts/figure_rate_distortion.py"


rule figure_pr_canyon:
    message: "figure pr_canyon"
    input:
        manifests=corpora(f"{CORPUS}/spectra.json"),
        tables=ancient(corpora(f"{CORPUS}/spectra.csv")),
        hooked=ancient(sorted(set(grid(f"{LAYER}/activations-train.json")))),
    output: **figure("pr_canyon", "Spectra")
    log: "logs/studies/{study}/figure_pr_canyon.log"
    benchmark: "logs/studies/{study}/figure_pr_canyon.tsv"
    params: spec=spec("figure_pr_canyon")
    script: "../workflow/scripts/figure_pr_canyon.py"


rule figure_loss_curves:
    message: "figure loss_curves"
    input:
        manifests=grid(f"{SAE}/sae.json"),
        tables=ancient(grid(f"{SAE}/training.csv")),
    output: **figure("loss_curves", "Training")
    log: "logs/studies/{study}/figure_loss_curves.log"
    benchmark: "logs/studies/{study}/figure_loss_curves.tsv"
    params: spec=spec("figure_loss_curves")
    script: "../workflow/scripts/figure_loss_curves.py"
