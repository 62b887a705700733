"""Problems in two languages as token ids of one subject."""

from streamgauge import manifest, prompts, provenance, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    table, facts = prompts.prepare(
        source.file,
        provenance.settings(spec, "prompts"),
        subjects.load_tokenizer(source.model),
        manifest.read(source.subject)["facts"]["n_ctx"],
    )
    table.to_parquet(out.table, index=False)
    manifest.write(out.manifest, spec, [out.table], [source.subject], facts)
