"""MI critics of every layer of a study beside its participation ratio."""

import pandas as pd

from streamgauge import critic_runs, manifest
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    pairs = [
        zip(map(manifest.read, records), map(pd.read_csv, tables), strict=True)
        for records, tables in (
            (source.critics, source.critics_tables),
            (source.spectra, source.spectra_tables),
        )
    ]
    critic_runs.study_table(*pairs).to_csv(out.table, index=False)
    manifest.write(out.manifest, spec, [out.table], [*source.critics, *source.spectra])
