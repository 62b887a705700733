"""What the errors of one SAE, its untrained control and the ablations cost, from stored probes."""

import os

from streamgauge import controls, manifest, sensitivity, stores, subjects
from streamgauge.jobs import job
from streamgauge.sae import io

with job(snakemake.log[0], snakemake.threads):
    spec, source, out = snakemake.params.spec, snakemake.input, snakemake.output
    trained = manifest.read(source.sae)["facts"]
    activations = stores.ActivationStore(source.store)
    device = subjects.resolve_device(snakemake.resources.device)
    sae, config = io.load(os.path.dirname(source.cfg), device)
    sensitivity.check_matches(config, sae, activations, source.cfg)
    table = sensitivity.measure(
        activations,
        stores.GradientStore(source.gradient_store),
        stores.ProbeStore(source.probe_store),
        {
            "sae": sae,
            "untrained": controls.untrained_like(sae, trained),
            **controls.ablations(activations.means()),
        },
        device=device,
    )
    table.to_parquet(out.table, index=False)
    made_from = [source.activations, source.gradients, source.probes, source.sae]
    manifest.write(out.manifest, spec, [out.table], made_from)
