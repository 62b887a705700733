"""Sparse autoencoders: codecs, their files, and two trainers of TopK fed by one stream.

``codec`` what all have in common; ``topk`` and ``threshold`` (ReLU, JumpReLU) the rules;
``architectures`` those that are read, by name; ``files`` the SAELens directory layout; ``formats``
SAEs of other libraries; ``stream`` shuffled batches from an activations store; ``step`` one
optimiser step with closed-form gradients; ``objective`` what it minimises, with ``behavioral`` and
``e2e`` for other losses than the squared error; ``train`` the native training loop;
``saelens_trainer`` the same stream through SAELens' own trainer.
"""
