"""Tables of a cross-lingual study, and what it reached and found."""

from streamgauge import crosslingual, manifest
from streamgauge.jobs import job

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    cells = crosslingual.read_cells(dict(source.items()))
    tables = crosslingual.tables(cells)
    files = crosslingual.write(tables, dict(out.items()))
    facts = crosslingual.findings(tables, crosslingual.verdicts(cells["patching"]))
    made_from = [*source.geometry, *source.separation, *source.updates, *source.bridge]
    made_from += [*source.patching, *source.ard]
    manifest.write(out.manifest, spec, files, made_from, facts)
