"""Recording from the training loops of other libraries.

The public modules `accelerate`, `lightning`, `pytorch_lightning` and `transformers` have the
names of the libraries that they need; no other package of trajstore needs these libraries. The
modules make a `trajstore.Recorder` when training begins, and close it when training ends. The
callbacks also choose the recorder's options from the library's settings, and log the loss. The
modules may import `trajstore.recording` and below. Begin with `accelerate`, the shortest module;
`lightning_hooks` holds the code that the callbacks for Lightning's two packages share.
"""
