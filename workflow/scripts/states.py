"""Residual streams of prompt pairs at every layer."""

import pandas as pd

from streamgauge import manifest, provenance, states, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    dtype = manifest.read(source.subject)["facts"]["dtype"]
    made_from = [source.subject, source.prompts]
    facts = states.harvest(
        subjects.load(source.model, snakemake.resources.device, dtype),
        pd.read_parquet(source.table),
        out.store,
        manifest.identity(spec, made_from),
        **provenance.settings(spec, "states"),
    )
    manifest.write(out.manifest, spec, [out.store], made_from, facts)
