"""Token rows of one split of a corpus."""

from streamgauge import corpora, manifest, provenance, stores, subjects
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, out = snakemake.params.spec, snakemake.output
    tokens, document = corpora.token_rows(
        provenance.settings(spec, "corpus"),
        subjects.load_tokenizer(snakemake.input.model),
        snakemake.wildcards.split,
        provenance.settings(spec, "sequences"),
    )
    facts = stores.store_tokens(out.store, spec, tokens, document)
    manifest.write(out.manifest, spec, [out.store], [snakemake.input.subject], facts)
