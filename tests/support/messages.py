"""What the jobs of the small study say they do: the sets that plans are held against."""

LEADERBOARD = {"leaderboard of study tiny", "figure leaderboard"}
CALIBRATION = {"calibration table of study tiny", "figure calibration"}
ATTENTION = {"attention table of study tiny", "figure attention"}
GRID_FIGURES = {f"figure {name}" for name in ("proxy_gap", "rate_distortion", "objectives")}
COST_FIGURES = {f"figure {name}" for name in ("leaderboard", "calibration", "attention")}
GAP_FIGURES = {f"figure {name}" for name in ("deltas", "budgets", "kstar")}
OTHER_FIGURES = {
    f"figure {name}" for name in ("pr_canyon", "loss_curves", "depth_profile", "critics")
}
FIGURES = GRID_FIGURES | COST_FIGURES | GAP_FIGURES | OTHER_FIGURES
GRID = {"grid table of study tiny", "published cells beside study tiny"}
VERDICTS = {"verdicts of study tiny"}
PROFILE = {"depth profile of study tiny", "figure depth_profile"}
COMPARISONS = {"comparisons of study tiny"} | GAP_FIGURES | PROFILE | VERDICTS
CRITICS = {"critics table of study tiny", "figure critics"} | VERDICTS
LAYERS, KS = ("01", "02"), (2, 4)
VERBS = ("train", "evaluate", "sensitivity", "attention", "score")


def saes(verbs=VERBS, layers=LAYERS, ks=KS, seeds=(0,), objective="mse"):
    """The messages of jobs over SAEs."""
    return {
        f"{verb} SAE tiny layer {ell} topk-x4-k{k}-t1024-{objective}-seed{seed}"
        for verb in verbs
        for ell in layers
        for k in ks
        for seed in seeds
    }


def stores(names, layers=LAYERS, splits=("eval",)):
    """The messages of jobs that write stores of a layer: one part each, then the gather."""
    whole = {
        f"{name} tiny layer {ell}, {split}" for name in names for ell in layers for split in splits
    }
    return whole | {f"{message}, part 0 of 1" for message in whole}


def harvests(layers=LAYERS):
    return stores(["harvest"], layers, ("train", "eval"))


def baselines(layers=LAYERS):
    return {f"baseline tiny layer {ell}: zero and mean ablation" for ell in layers}


def backward(layers=LAYERS, names=("gradients", "probes")):
    """The messages of jobs that differentiate the model on the evaluation rows."""
    return stores(names, layers)


def calibrations(layers=LAYERS):
    return {f"calibration tiny layer {ell}: synthetic errors" for ell in layers}


def critics(layers=LAYERS):
    return {f"critics tiny layer {ell}" for ell in layers} | CRITICS


BELOW_SCORES = GRID | GRID_FIGURES | LEADERBOARD | COMPARISONS
BELOW_SAES = BELOW_SCORES | CALIBRATION | ATTENTION | {"figure loss_curves"}
