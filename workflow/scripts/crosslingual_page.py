"""The findings of a cross-lingual study as a page."""

from pathlib import Path

from streamgauge import crosslingual, crosslingual_page, manifest
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    facts = manifest.read(source.manifest)["facts"]
    tables = crosslingual.read(dict(source.items()))
    page = crosslingual_page.page(facts, tables, snakemake.wildcards.study)
    Path(out.page).write_text(page, encoding="utf-8")
    manifest.write(out.manifest, spec, [out.page], [source.manifest])
