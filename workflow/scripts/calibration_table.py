"""Predicted against measured KL of a study: synthetic errors and those of its SAEs."""

import pandas as pd

from streamgauge import calibration, manifest, provenance
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    pairs = [
        zip(map(manifest.read, records), map(pd.read_parquet, tables), strict=True)
        for records, tables in (
            (source.synthetic, source.synthetic_tables),
            (source.per_sequence, source.per_sequence_tables),
            (source.sensitivity, source.sensitivity_tables),
        )
    ]
    points = calibration.points(*pairs)
    points.to_csv(out.points, index=False)
    table = calibration.table(points, **provenance.settings(spec, "statistics"))
    table.to_csv(out.table, index=False)
    made_from = [*source.synthetic, *source.per_sequence, *source.sensitivity]
    manifest.write(out.manifest, spec, [out.table, out.points], made_from)
