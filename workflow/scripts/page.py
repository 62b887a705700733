"""What was found, as pages a person reads."""

from streamgauge.artifacts.job import run
from streamgauge.base.tables import read_csv, read_parquet
from streamgauge.crosslingual import tables as suite
from streamgauge.report import findings_page, verdict_page
from streamgauge.studies import audit_report, leaderboard
from streamgauge.studies import verdicts as hypotheses


def audit(job):
    facts = audit_report.judge(
        read_parquet(job.source.table),
        read_parquet(job.source.baseline_table),
        **job.settings("statistics"),
    )
    page = audit_report.page(job.at.sae, job.facts("sae"), job.facts("scores"), facts)
    job.text("page", page)
    job.write(["page"], ["sae", "per_sequence", "baseline", "scores"], facts)


def verdicts(job):
    drawn = job.settings("statistics")
    compared = job.facts("comparisons")
    facts = hypotheses.adjudicate(
        read_csv(job.source.deltas),
        read_csv(job.source.budgets),
        leaderboard.advantage(read_csv(job.source.grid_table), **drawn),
        read_csv(job.source.critics_table),
        refused=compared["refused"],
        missing=compared["missing"],
        **job.settings("verdicts"),
        **drawn,
    )
    job.text("page", verdict_page.page(facts, job.at.study))
    job.write(["page"], ["comparisons", "grid", "critics"], facts)


def crosslingual_page(job):
    tables = suite.read(dict(job.source.items()))
    job.text("page", findings_page.page(job.facts("manifest"), tables, job.at.study))
    job.write(["page"], ["manifest"])


run(snakemake, globals())
