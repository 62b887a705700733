"""Train one SAE from stored activations."""

from streamgauge import manifest, provenance
from streamgauge.jobs import job
from streamgauge.sae import train

with job(snakemake.log[0], snakemake.threads):
    spec, out, w = snakemake.params.spec, snakemake.output, snakemake.wildcards
    facts = train.train_one(
        snakemake.input.store,
        out.cfg,
        expansion=int(w.expansion),
        k=int(w.k),
        tokens=int(w.tokens),
        seed=int(w.seed),
        settings=provenance.settings(spec, "sae"),
        spec=spec,
        device=snakemake.resources.device,
    )
    files = [out.cfg, out.weights, out.history]
    manifest.write(out.manifest, spec, files, [snakemake.input.activations], facts)
