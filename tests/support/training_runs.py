"""Three SAEs trained together from one small store, and the settings of the training."""

from streamgauge.sae.train import Run, Settings

D, M = 16, 64
SETTINGS = Settings(
    batch_size=256, warmup_steps=5, lr=2e-3, dead_tokens=700, k_aux=8, pool_tokens=2048
)
RUNS = [
    Run(k=4, d_sae=M, seed=0, tokens=40 * 256),
    Run(k=8, d_sae=M, seed=1, tokens=25 * 256 + 100, lr=1e-3),
    Run(k=2, d_sae=2 * M, seed=0, tokens=30 * 256),
]
