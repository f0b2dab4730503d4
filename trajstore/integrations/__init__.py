"""Recording from the training loops of other libraries.

Each public module needs its library and nothing else does: `accelerate`, `lightning`,
`pytorch_lightning` and `transformers`. They make a `trajstore.Recorder` when training begins,
choose its options from the library's settings, log the loss, and close it. They may import
`trajstore.recording` and below. Begin with `accelerate`, the shortest; `lightning_hooks` holds
the code that both packages of Lightning share.
"""
