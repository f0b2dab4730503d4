"""Format of a store: the meaning of its bytes, without any reading or writing.

Begin with `run_spec` (everything known when recording begins), `arrays` (the arrays that
follow from it) and `document` (``zarr.json``, checked and parsed). `layout` places tensors
in flat vectors, `windows` schedules anchors, `rows` turns measured steps into stored rows,
`attrs` names keys and measurements that training and analysis share.

Imports only the standard library and NumPy.
"""
