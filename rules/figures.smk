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
        hooked=ancient(layers(f"{LAYER}/activations-train.json")),
    output: **figure("pr_canyon", "Spectra")
    log: "logs/studies/{study}/figure_pr_canyon.log"
    benchmark: "logs/studies/{study}/figure_pr_canyon.tsv"
    params:
        spec=spec("figure_pr_canyon"),
        members=members(layers(f"{LAYER}/activations-train.json")),
    script: "../workflow/scripts/figure_pr_canyon.py"


rule figure_loss_curves:
    message: "figure loss_curves"
    input:
        manifests=grid(f"{SAE}/sae.json"),
        tables=ancient(grid(f"{SAE}/training.csv")),
    output: **figure("loss_curves", "Training")
    log: "logs/studies/{study}/figure_loss_curves.log"
    benchmark: "logs/studies/{study}/figure_loss_curves.tsv"
    params:
        spec=spec("figure_loss_curves"),
        members=members(grid(f"{SAE}/sae.json")),
    script: "../workflow/scripts/figure_loss_curves.py"


rule figure_calibration:
    message: "figure calibration"
    input:
        calibration="results/studies/{study}/calibration.json",
        table=ancient("results/studies/{study}/calibration.csv"),
        points=ancient("results/studies/{study}/calibration_points.csv"),
    output: **figure("calibration", "Sensitivity")
    log: "logs/studies/{study}/figure_calibration.log"
    benchmark: "logs/studies/{study}/figure_calibration.tsv"
    params: spec=spec("figure_calibration")
    script: "../workflow/scripts/figure_calibration.py"


rule figure_objectives:
    message: "figure objectives"
    input:
        grid="results/studies/{study}/grid.json",
        table=ancient("results/studies/{study}/grid.csv"),
    output: **figure("objectives", "Scores")
    log: "logs/studies/{study}/figure_objectives.log"
    benchmark: "logs/studies/{study}/figure_objectives.tsv"
    params: spec=spec("figure_objectives")
    script: "../workflow/scripts/figure_objectives.py"


rule figure_leaderboard:
    message: "figure leaderboard"
    input:
        leaderboard="results/studies/{study}/leaderboard.json",
        table=ancient("results/studies/{study}/leaderboard.csv"),
    output: **figure("leaderboard", "Sensitivity")
    log: "logs/studies/{study}/figure_leaderboard.log"
    benchmark: "logs/studies/{study}/figure_leaderboard.tsv"
    params: spec=spec("figure_leaderboard")
    script: "../workflow/scripts/figure_leaderboard.py"


rule figure_attention:
    message: "figure attention"
    input:
        attention="results/studies/{study}/attention.json",
        table=ancient("results/studies/{study}/attention.csv"),
    output: **figure("attention", "Sensitivity")
    log: "logs/studies/{study}/figure_attention.log"
    benchmark: "logs/studies/{study}/figure_attention.tsv"
    params: spec=spec("figure_attention")
    script: "../workflow/scripts/figure_attention.py"


rule figure_deltas:
    message: "figure deltas"
    input:
        comparisons="results/studies/{study}/comparisons.json",
        table=ancient("results/studies/{study}/deltas.csv"),
    output: **figure("deltas", "Proxy gap")
    log: "logs/studies/{study}/figure_deltas.log"
    benchmark: "logs/studies/{study}/figure_deltas.tsv"
    params: spec=spec("figure_deltas")
    script: "../workflow/scripts/figure_deltas.py"


rule figure_budgets:
    message: "figure budgets"
    input:
        comparisons="results/studies/{study}/comparisons.json",
        table=ancient("results/studies/{study}/budgets.csv"),
    output: **figure("budgets", "Proxy gap")
    log: "logs/studies/{study}/figure_budgets.log"
    benchmark: "logs/studies/{study}/figure_budgets.tsv"
    params: spec=spec("figure_budgets")
    script: "../workflow/scripts/figure_budgets.py"


rule figure_kstar:
    message: "figure kstar"
    input:
        comparisons="results/studies/{study}/comparisons.json",
        table=ancient("results/studies/{study}/kstar.csv"),
    output: **figure("kstar", "Proxy gap")
    log: "logs/studies/{study}/figure_kstar.log"
    benchmark: "logs/studies/{study}/figure_kstar.tsv"
    params: spec=spec("figure_kstar")
    script: "../workflow/scripts/figure_kstar.py"


rule figure_depth_profile:
    message: "figure depth_profile"
    input:
        depth_profile="results/studies/{study}/depth_profile.json",
        table=ancient("results/studies/{study}/depth_profile.csv"),
    output: **figure("depth_profile", "Spectra")
    log: "logs/studies/{study}/figure_depth_profile.log"
    benchmark: "logs/studies/{study}/figure_depth_profile.tsv"
    params: spec=spec("figure_depth_profile")
    script: "../workflow/scripts/figure_depth_profile.py"


rule figure_critics:
    message: "figure critics"
    input:
        critics="results/studies/{study}/critics.json",
        table=ancient("results/studies/{study}/critics.csv"),
    output: **figure("critics", "Spectra")
    log: "logs/studies/{study}/figure_critics.log"
    benchmark: "logs/studies/{study}/figure_critics.tsv"
    params: spec=spec("figure_critics")
    script: "../workflow/scripts/figure_critics.py"


rule figure_verdict_calibration:
    message: "figure verdict_calibration"
    input:
        verdict_calibration="results/studies/{study}/verdict_calibration.json",
        table=ancient("results/studies/{study}/verdict_calibration.csv"),
    output: **figure("verdict_calibration", "Verdicts")
    log: "logs/studies/{study}/figure_verdict_calibration.log"
    benchmark: "logs/studies/{study}/figure_verdict_calibration.tsv"
    params: spec=spec("figure_verdict_calibration")
    script: "../workflow/scripts/figure_verdict_calibration.py"
