"""Large data sets: those of the AlgoPerf benchmark, and SlimPajama.

`criteo`, `fastmri`, `ogbg`, `wmt` and `slimpajama` each read one data set from files in the
layout in which it is published, and has an embedded stand-in; `subwords` is shared.

Imports torch, ``train.data``, ``train.graphs``; to load true data, also h5py, ``datasets`` and ``tokenizers``.
Start reading with `criteo`.
"""
