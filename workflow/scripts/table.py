"""Scores of an SAE, and the tables of a study, from tables."""

import pandas as pd

from streamgauge.artifacts.job import run
from streamgauge.crosslingual import tables as suite
from streamgauge.studies import (
    attention_by_head,
    kl_calibration,
    score_card,
    verdict_simulation,
)
from streamgauge.studies import comparisons as compared
from streamgauge.studies import critics_table as critics
from streamgauge.studies import leaderboard as proxies
from streamgauge.studies import published as printed


def score(job):
    shape = job.facts("sae")
    facts = score_card.scorecard(
        pd.concat([pd.read_parquet(job.source.table), pd.read_parquet(job.source.baseline_table)]),
        pd.read_parquet(job.source.latents),
        pd.read_parquet(job.source.sensitivity_table),
        d_model=shape["d_model"],
        d_sae=shape["d_sae"],
        k=shape["k"],
        **job.settings("statistics"),
    )
    job.write([], ["sae", "per_sequence", "baseline", "sensitivity"], facts)


def grid(job):
    table = score_card.grid_table(job.records("scores"))
    table.to_csv(job.out.table, index=False)
    job.write(["table"], ["scores"])


def comparisons(job):
    found = compared.tables(
        job.pairs("per_sequence", "per_sequence_tables", pd.read_parquet),
        pd.read_csv(job.source.grid_table),
        compared.token_hashes(job.records("tokens")),
        job.settings("depths"),
        **job.settings("comparisons"),
        **job.settings("statistics"),
    )
    found.deltas.to_csv(job.out.deltas, index=False)
    found.budgets.to_csv(job.out.budgets, index=False)
    found.correlations.to_csv(job.out.correlations, index=False)
    found.kstar.to_csv(job.out.kstar, index=False)
    files = ["deltas", "budgets", "correlations", "kstar"]
    job.write(files, ["per_sequence", "grid", "tokens"], found.facts)


def depth_profile_table(job):
    spectra = pd.concat(map(pd.read_csv, job.source.spectra_tables), ignore_index=True)
    budgets = pd.read_csv(job.source.budgets, dtype={"depth": str})
    table = compared.depth_profile(spectra, budgets)
    table.to_csv(job.out.table, index=False)
    job.write(["table"], ["spectra", "comparisons"])


def critics_table(job):
    layers = job.pairs("critics", "critics_tables", pd.read_csv)
    spectra = job.pairs("spectra", "spectra_tables", pd.read_csv)
    critics.study_table(layers, spectra).to_csv(job.out.table, index=False)
    job.write(["table"], ["critics", "spectra"])


def leaderboard(job):
    table = proxies.leaderboard(pd.read_csv(job.source.table), **job.settings("statistics"))
    table.to_csv(job.out.table, index=False)
    job.write(["table"], ["grid"])


def calibration_table(job):
    points = kl_calibration.points(
        job.pairs("synthetic", "synthetic_tables", pd.read_parquet),
        job.pairs("per_sequence", "per_sequence_tables", pd.read_parquet),
        job.pairs("sensitivity", "sensitivity_tables", pd.read_parquet),
    )
    points.to_csv(job.out.points, index=False)
    table = kl_calibration.table(points, **job.settings("statistics"))
    table.to_csv(job.out.table, index=False)
    job.write(["table", "points"], ["synthetic", "per_sequence", "sensitivity"])


def attention_table(job):
    table = attention_by_head.study_table(
        job.pairs("manifests", "tables", pd.read_parquet), **job.settings("statistics")
    )
    table.to_csv(job.out.table, index=False)
    job.write(["table"], ["manifests"])


def published(job):
    grid, cells = pd.read_csv(job.source.table), pd.read_csv(job.source.cells)
    table = printed.side_by_side(grid, job.records("subjects"), cells)
    table.to_csv(job.out.table, index=False)
    job.write(["table"], ["grid", "subjects"])


def simulation(job):
    table = verdict_simulation.calibrate(
        **job.settings("simulation"),
        rules=job.settings("verdicts"),
        confidence=job.settings("statistics")["confidence"],
    )
    table.to_csv(job.out.table, index=False)
    job.write(["table"])


def crosslingual_tables(job):
    names = ["geometry", "separation", "updates", "bridge", "patching", "ard"]
    records = dict(zip(names, map(job.records, names), strict=True))
    cells = suite.paired(records, dict(job.source.items()))
    tables = suite.tables(cells)
    suite.write(tables, dict(job.out.items()))
    facts = suite.findings(tables, suite.verdicts(cells["patching"]))
    job.write(list(suite.TABLES), names, facts)


run(snakemake, globals())
