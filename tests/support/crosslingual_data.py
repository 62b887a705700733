"""Tables and verdicts of a made-up cross-lingual study, in the columns that the parts write."""

import itertools

import numpy as np
import pandas as pd

from streamgauge.crosslingual import tables as crosslingual

PLACE = {"subject": "tiny", "prompts": "math"}
CONDITIONS = ["none", "full", "z", "z_perp", "z_wrong", "z_same", "z_self"]
CONDITIONS += ["z_perp_wrong", "z_perp_same", "z_perp_self"]
DRAWN = ["random", "random_perp", "norm_matched"]


def record(facts=None, **wildcards):
    """A manifest, as far as a study reads it."""
    return {"spec": {"wildcards": wildcards}, "facts": facts or {}}


def layers(n=6):
    rng, rows = np.random.default_rng(0), []
    for layer in range(n):
        row = {"layer": layer, "d_model": 64, "d_head": 16, "n_heads": 4, "n_kv_heads": 2}
        row |= {"effective_rank_mean": 9 + rng.random(), "effective_rank_sd": 1.0}
        row |= {"effective_rank_cv": 0.1, "k_sub": 8, "ffn_alignment": 0.5 + rng.random()}
        row |= {"ffn_random_low": 0.9, "ffn_random_high": 1.1, "similarity_chance": 0.06}
        row |= {"similarity_next": 0.3 if layer < n - 1 else np.nan}
        rows.append({**row, "similarity_random_low": 0.04, "similarity_random_high": 0.08})
    return pd.DataFrame(rows)


def heads(n=6):
    pairs = itertools.product(range(n), range(4))
    rows = [{"layer": a, "head": b, "kv_head": b // 2, "effective_rank": 9.0} for a, b in pairs]
    return pd.DataFrame(rows).assign(top_share=0.2)


def similarity(n=6):
    pairs = itertools.combinations(range(n), 2)
    rows = [{"layer_a": a, "layer_b": b, "k_sub": 8, "top": 4} for a, b in pairs]
    return pd.DataFrame(rows).assign(similarity=0.3, chance=0.06)


def separation(n_random=5):
    rows = []
    for pooling in ("mean", "mean_no_first", "last"):
        for j in range(-1, n_random):
            row = {"pooling": pooling, "subspace": "z" if j < 0 else f"random-{j}"}
            row |= {"ratio_z": 0.7 + 0.02 * (j + 1), "ratio_z_perp": 0.9, "ratio_full": 0.85}
            row |= {"e_z": 0.1 + 0.01 * j, "e_chance": 0.125, "e_chance_low": 0.06}
            row |= {"e_chance_high": 0.2, "n_pairs": 20, "n_random": n_random}
            ranks = {"rank_ratio_z": 1, "p_ratio_z": 1 / 3, "rank_e_z": 1, "p_e_z": 1 / 3}
            rows.append(row | (ranks if j < 0 else dict.fromkeys(ranks, np.nan)))
    return pd.DataFrame(rows)


def updates(n=5):
    rng, rows = np.random.default_rng(1), []
    for layer, language in itertools.product(range(n), ("en", "zh")):
        r = 0.3 + 0.2 * rng.random()
        row = {"layer": layer, "language": language, "n_prompts": 20, "r": r, "r_low": r - 0.05}
        row |= {"r_high": r + 0.05, "r_chance": 0.36, "r_over_chance": r / 0.36}
        row |= {"r_random_low": 0.3, "r_random_high": 0.42, "asymmetry": 0.01}
        rows.append({**row, "asymmetry_low": -0.01, "asymmetry_high": 0.03})
    return pd.DataFrame(rows)


def bridge(r2=0.95, error=0.02, random_low=0.1):
    rows = []
    for method in ("least_squares", "ridge"):
        row = {"method": method, "n_pairs": 20, "r2_loo": r2, "r2_in_sample": 0.99}
        row |= {"informative": True, "orthogonality_error": error, "condition": 2.0}
        row |= {"permuted_low": -0.4, "permuted_high": 0.1, "p_permuted": 0.005}
        row |= {"random_low": 0.2, "random_high": 0.6, "rank_random": 6, "p_random": 1 / 3}
        row |= {"n_random": 5, "n_permutations": 200, "random_orthogonality_low": random_low}
        rows.append({**row, "random_orthogonality_high": 0.3})
    return pd.DataFrame(rows)


def bridge_spectra(k=8):
    index = np.arange(k)
    parts = []
    for method in ("least_squares", "ridge"):
        value = np.linspace(1.1, 0.9, k)
        part = pd.DataFrame({"method": method, "index": index, "singular_value": value})
        parts.append(part.assign(random_low=value / 3, random_high=value / 1.5))
    return pd.concat(parts, ignore_index=True)


def ard(d=64):
    row = {"d_model": d, "n_pairs": 20, "n_tokens": 400, "n_steps": 300, "stopped": True}
    row |= {"mmd2_start": 0.2, "mmd2_end": 0.01, "mmd2_permuted_low": -0.01}
    row |= {"mmd2_permuted_high": 0.01, "z_size": 12, "z_size_permuted_low": 40}
    row |= {"z_size_permuted_high": 60, "z_size_median": d // 2, "k_sub": 8, "overlap": 0.75}
    row |= {"overlap_flat": 0.5, "overlap_permuted": 0.2, "overlap_chance": 0.125}
    row |= {"overlap_chance_low": 0.0, "overlap_chance_high": 0.375, "overlap_flat_p": 0.01}
    row |= {"overlap_permuted_low": 0.1, "overlap_permuted_high": 0.3, "overlap_p": 1 / 21}
    return pd.DataFrame([row])


def patching(n_with_answer=18, n_random=19, z=0.9, random=0.1):
    rng, rows = np.random.default_rng(2), []
    drawn = [(name, j) for name in DRAWN for j in range(n_random)]
    for condition, draw in [(name, -1) for name in CONDITIONS] + drawn:
        changed = random + 0.1 * rng.random()
        switched = random * rng.random()
        changed = z if condition == "z" else 0.0 if condition == "none" else changed
        switched = z if condition in ("z_perp", "full") else switched
        row = {"condition": condition, "draw": draw, "over": "all", "n": 20}
        row |= {"n_with_answer": n_with_answer, "n_with_language": 20}
        values = {"answer_changed": changed, "answer_preserved": 1 - changed, "answer_lost": 0.0}
        values |= {"language_kept": 1 - switched, "language_switched": switched}
        for name, value in values.items():
            row[name] = value if n_with_answer else np.nan
            if name != "answer_lost":
                row[f"{name}_low"] = max(row[name] - 0.1, 0)
                row[f"{name}_high"] = min(row[name] + 0.1, 1)
        rows.append({**row, "degenerate": 0.0, "correct": 0.8})
    table = pd.DataFrame(rows)
    return pd.concat([table, table.assign(over="baseline_correct")], ignore_index=True)


def verdict(verdict="double dissociation", random=(0.0, 0.1)):
    half = {"statistic": 0.8, "random": list(random), "n_random": len(random), "rank": 1}
    half |= {"n": 18, "p_rank": 0.05, "p_paired": 0.001, "holds": verdict != "not adjudicated"}
    if verdict == "not adjudicated":
        half["holds"] = None
    found = {"verdict": verdict, "reason": "Answer: holds.", "alpha": 0.05, "fewest": 15}
    found |= {"halves": {"answer": half, "language": half}, "controls": [], "n_problems": 20}
    found |= {"n_baseline_number": 18, "n_baseline_correct": 16, "n_random": 19}
    found["sentence"] = f"{verdict.capitalize()}: <in words>, against 0.00 to 0.10."
    return found


def cells(
    subspaces=((3, 8), (4, 8)),
    sources=("mean", "ot"),
    ard_layers=(3, 4),
    penalties=("0.01",),
    subjects=("tiny",),
    verdicts=None,
    **tables,
):
    """The cells of a study, as `tables.paired` gives them.

    Tables given by name stand in for every cell of theirs.
    """
    verdicts = verdicts or {}
    found = {name: [] for name in ("heads", "layers", "similarity")}
    found |= {name: [] for name in ("separation", "updates", "bridge", "bridge_spectra")}
    found |= {"patching": [], "ard": []}
    made = {name: globals()[name] for name in found}
    for subject in subjects:
        for name in ("heads", "layers", "similarity"):
            found[name].append((record(subject=subject), tables.get(name, made[name]())))
        place = {"subject": subject, "prompts": "math"}
        for layer, k_sub in subspaces:
            cell = {**place, "ell": f"{layer:02d}", "k_sub": str(k_sub)}
            for name in ("separation", "updates", "bridge", "bridge_spectra"):
                found[name].append((record(**cell), tables.get(name, made[name]())))
            for source in sources:
                facts = {"verdict": verdicts.get((layer, source), verdict())}
                of = record(facts, **cell, source=source)
                found["patching"].append((of, tables.get("patching", made["patching"]())))
        for layer, penalty in itertools.product(ard_layers, penalties):
            of = record(**place, ell=f"{layer:02d}", penalty=penalty)
            found["ard"].append((of, tables.get("ard", made["ard"]())))
    return found


def study(**changes):
    """The tables of a study and its verdicts; `changes` as in `cells`."""
    made = cells(**changes)
    return crosslingual.tables(made), crosslingual.verdicts(made["patching"])
