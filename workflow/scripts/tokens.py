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
    scratch = stores.scratch(out.store, spec)
    facts = stores.store_tokens(scratch, tokens, document)
    stores.commit(scratch, out.store)
    manifest.write(out.manifest, spec, [out.store], [snakemake.input.subject], facts)
