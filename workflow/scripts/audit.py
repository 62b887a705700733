"""Whether one SAE is as good as its R² says, in numbers and in words."""

from pathlib import Path

import pandas as pd

from streamgauge import audit_report, manifest, provenance
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    facts = audit_report.judge(
        pd.read_parquet(source.table),
        pd.read_parquet(source.baseline_table),
        **provenance.settings(spec, "statistics"),
    )
    sae, scored = manifest.read(source.sae)["facts"], manifest.read(source.scores)["facts"]
    name = Path(out.page).parent.name
    Path(out.page).write_text(audit_report.page(name, sae, scored, facts), encoding="utf-8")
    made_from = [source.sae, source.per_sequence, source.baseline, source.scores]
    manifest.write(out.manifest, spec, [out.page], made_from, facts)
