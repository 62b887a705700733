"""Write an SAE that others trained as one of this study's."""

import os

from streamgauge import manifest, provenance, stores
from streamgauge.jobs import job
from streamgauge.sae import formats

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    facts = formats.convert(
        provenance.settings(spec, "import"),
        os.path.dirname(out.cfg),
        stores.ActivationStore(source.store),
        snakemake.wildcards.subject,
    )
    manifest.write(out.manifest, spec, [out.cfg, out.weights], [source.activations], facts)
