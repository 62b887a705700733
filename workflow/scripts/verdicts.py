"""The four hypotheses of a study, adjudicated, as a manifest and as a page."""

from pathlib import Path

import pandas as pd

from streamgauge import leaderboard, manifest, provenance, verdict_page, verdicts
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    drawn = provenance.settings(spec, "statistics")
    compared = manifest.read(source.comparisons)["facts"]
    facts = verdicts.adjudicate(
        pd.read_csv(source.deltas),
        pd.read_csv(source.budgets),
        leaderboard.advantage(pd.read_csv(source.grid_table), **drawn),
        pd.read_csv(source.critics_table),
        refused=compared["refused"],
        missing=compared["missing"],
        **provenance.settings(spec, "verdicts"),
        **drawn,
    )
    page = verdict_page.page(facts, snakemake.wildcards.study)
    Path(out.page).write_text(page, encoding="utf-8")
    made_from = [source.comparisons, source.grid, source.critics]
    manifest.write(out.manifest, spec, [out.page], made_from, facts)
