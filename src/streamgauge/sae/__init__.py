"""TopK sparse autoencoders: the codec, its files, and two trainers fed by one stream.

``topk`` the codec; ``io`` the SAELens directory layout; ``stream`` shuffled batches from an
activations store; ``step`` one optimiser step with closed-form gradients; ``objective`` what it
minimises, with ``behavioral`` and ``e2e`` for other losses than the squared error; ``train`` the
native training loop; ``saelens`` the same stream through SAELens' own trainer.
"""
