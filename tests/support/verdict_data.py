"""Tables of a made-up study, as `comparisons` writes them, and the verdicts on them."""

import itertools

import numpy as np
import pandas as pd

from streamgauge.studies import verdicts

RULES = {
    "margin": 0.02,
    "convergence": 0.02,
    "alpha": 0.05,
    "proxy": "swd",
    "advantage": 0.1,
    "token_set": "all",
}
D_MODEL = {"s": 32, "m": 64, "l": 128}


def deltas(
    gap=0.0,
    *,
    first=0.1,
    subjects=("s", "l"),
    budgets=(1000, 2000),
    depths=("early", "late"),
    ks=(8, 32),
    n_seeds=3,
    n_sequences=64,
    se=(0.003, 0.002),
    proxy_gap=None,
):
    """``deltas.csv``: ΔCE_rec is `gap` at the largest budget and `first` at the others.

    `gap` may be a function of (depth, k); `proxy_gap` of (small, big, depth) gives Gap.
    """
    rows = []
    cells = itertools.product(("all", "no_sink"), budgets, depths, ks)
    for token_set, tokens, depth, k in cells:
        for small, big in itertools.combinations(subjects, 2):
            d = first if tokens < max(budgets) else gap(depth, k) if callable(gap) else gap
            of_gap = 0.05 - d if proxy_gap is None else proxy_gap(small, big, depth)
            row = {"corpus": "texts", "token_set": token_set, "depth": depth, "expansion": 8}
            row |= {"objective": "mse", "k": k, "tokens": tokens, "seed": "all"}
            row |= {"small": small, "big": big, "n_sequences": n_sequences, "n_seeds": n_seeds}
            for side, name in (("small", small), ("big", big)):
                row |= {f"{side}_layer": depths.index(depth), f"{side}_d_model": D_MODEL[name]}
            for x, value in (("d_r2", of_gap + d), ("d_ce_rec", d), ("gap", of_gap)):
                row |= {x: value, f"{x}_low": value - 0.01, f"{x}_high": value + 0.01}
                both = 0.015 if n_seeds > 1 else np.nan
                row |= {f"{x}_both_low": value - both, f"{x}_both_high": value + both}
            row |= {"d_ce_rec_se_sequences": se[0]}
            row |= {"d_ce_rec_se_seeds": se[1] if n_seeds > 1 else np.nan}
            row |= {"untrained_d_r2": -0.2, "untrained_d_ce_rec": -0.3, "untrained_gap": 0.1}
            rows.append(row)
            # rows of single seeds must not count
            rows += [row | {"seed": str(seed), "d_ce_rec": 9.0} for seed in range(n_seeds)]
    return pd.DataFrame(rows)


def budgets(change=0.0, table=None, **shape):
    """``budgets.csv`` of the same study: CE_rec changes by `change` over the last step."""
    table = deltas(**shape) if table is None else table
    parts = []
    for side in ("small", "big"):
        own = table[table.seed == "all"].rename(columns={side: "subject", f"{side}_layer": "layer"})
        parts.append(own.drop_duplicates(["token_set", "subject", "layer", "k", "tokens"]))
    names = ["corpus", "token_set", "subject", "layer", "expansion", "objective", "k", "tokens"]
    rows = pd.concat(parts)[[*names, "n_seeds", "n_sequences", "d_ce_rec_se_seeds"]]
    rows = rows.drop_duplicates(names).rename(
        columns={"d_ce_rec_se_seeds": "change_ce_rec_se_seeds"}
    )
    later = rows.tokens > rows.tokens.min()
    rows["change_n_seeds"] = rows.n_seeds.where(later, 0)
    moved = [change(subject) if callable(change) else change for subject in rows.subject]
    rows["change_ce_rec"] = np.where(later, moved, np.nan)
    rows["change_ce_rec_se_sequences"] = np.where(later, 0.002, np.nan)
    return rows


def critics(departure, subjects=("s", "l"), layers=4, widths=(1, 2, 4)):
    """``critics.csv`` where |log2(k*/PR)| of a subject and layer is `departure` of them."""
    rows = []
    for subject, layer, width in itertools.product(subjects, range(layers), widths):
        for critic, factor in (("hybrid", 1), ("separable", 7)):
            row = {"subject": subject, "corpus": "texts", "layer": layer, "critic": critic}
            row |= {"width": width, "pinned": False, "censored": np.nan, "pr": 8.0}
            row |= {"k_star": 8.0 * 2 ** (factor * departure(subject, layer)), "pr_no_sink": 16.0}
            rows.append(row)
    return pd.DataFrame(rows)


def advantages(advantage=0.3, low=0.1, high=0.5, p_value=0.01, proxy="swd"):
    """Rows of `leaderboard.advantage` for a proxy and an exploratory one."""
    row = {"token_set": "all", "how": "within_k", "proxy": proxy, "n": 24, "n_clusters": 8}
    row |= {"spearman": 0.8, "spearman_over": 0.8 - advantage, "advantage": advantage}
    row |= {"advantage_low": low, "advantage_high": high, "p_value": p_value}
    row |= {"null_low": -0.2, "null_high": 0.2}
    other = row | {"proxy": "quad_nats", "advantage": 0.9}
    return pd.DataFrame([row, other, row | {"how": "pooled", "advantage": -1.0}])


def judged(gap=0.0, change=0.0, *, ranked=None, read=None, missing=(), rules=None, **shape):
    table = deltas(gap, **shape)
    settings = RULES | {"resamples": 500} | (rules or {})
    return verdicts.adjudicate(
        table, budgets(change, table), ranked, read, missing=missing, **settings
    )
