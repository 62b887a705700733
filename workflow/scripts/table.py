"""Scores of an SAE, and the tables of a study, from tables."""

from streamgauge.artifacts.job import run
from streamgauge.base.tables import read_csv, read_parquet, stacked, write_csv
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
        stacked(read_parquet, [job.source.table, job.source.baseline_table]),
        read_parquet(job.source.latents),
        read_parquet(job.source.sensitivity_table),
        d_model=shape["d_model"],
        d_sae=shape["d_sae"],
        k=shape["k"],
        **job.settings("statistics"),
    )
    job.write([], ["sae", "per_sequence", "baseline", "sensitivity"], facts)


def grid(job):
    table = score_card.grid_table(job.records("scores"))
    write_csv(table, job.out.table)
    job.write(["table"], ["scores"])


def comparisons(job):
    found = compared.tables(
        job.pairs("per_sequence", "per_sequence_tables", read_parquet),
        read_csv(job.source.grid_table),
        compared.token_hashes(job.records("tokens")),
        job.settings("depths"),
        **job.settings("comparisons"),
        **job.settings("statistics"),
    )
    write_csv(found.deltas, job.out.deltas)
    write_csv(found.budgets, job.out.budgets)
    write_csv(found.correlations, job.out.correlations)
    write_csv(found.kstar, job.out.kstar)
    files = ["deltas", "budgets", "correlations", "kstar"]
    job.write(files, ["per_sequence", "grid", "tokens"], found.facts)


def depth_profile_table(job):
    spectra = stacked(read_csv, job.source.spectra_tables)
    budgets = read_csv(job.source.budgets, dtype={"depth": str})
    table = compared.depth_profile(spectra, budgets)
    write_csv(table, job.out.table)
    job.write(["table"], ["spectra", "comparisons"])


def critics_table(job):
    layers = job.pairs("critics", "critics_tables", read_csv)
    spectra = job.pairs("spectra", "spectra_tables", read_csv)
    write_csv(critics.study_table(layers, spectra), job.out.table)
    job.write(["table"], ["critics", "spectra"])


def leaderboard(job):
    table = proxies.leaderboard(read_csv(job.source.table), **job.settings("statistics"))
    write_csv(table, job.out.table)
    job.write(["table"], ["grid"])


def calibration_table(job):
    points = kl_calibration.points(
        job.pairs("synthetic", "synthetic_tables", read_parquet),
        job.pairs("per_sequence", "per_sequence_tables", read_parquet),
        job.pairs("sensitivity", "sensitivity_tables", read_parquet),
    )
    write_csv(points, job.out.points)
    table = kl_calibration.table(points, **job.settings("statistics"))
    write_csv(table, job.out.table)
    job.write(["table", "points"], ["synthetic", "per_sequence", "sensitivity"])


def attention_table(job):
    table = attention_by_head.study_table(
        job.pairs("manifests", "tables", read_parquet), **job.settings("statistics")
    )
    write_csv(table, job.out.table)
    job.write(["table"], ["manifests"])


def published(job):
    grid, cells = read_csv(job.source.table), read_csv(job.source.cells)
    table = printed.side_by_side(grid, job.records("subjects"), cells)
    write_csv(table, job.out.table)
    job.write(["table"], ["grid", "subjects"])


def simulation(job):
    table = verdict_simulation.calibrate(
        **job.settings("simulation"),
        rules=job.settings("verdicts"),
        confidence=job.settings("statistics")["confidence"],
    )
    write_csv(table, job.out.table)
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
