"""Define the format of a store: its arrays, its documents and their meaning.

Begin with `run_spec` (everything known when recording begins), `arrays` (the arrays that
follow from it) and `document` (``zarr.json``, checked and parsed). `checks` binds chunks to
their places and the document to itself. `layout` places tensors in flat vectors, `windows` schedules anchors, `rows` turns measured steps into stored rows,
`attrs` names keys and measurements that training and analysis share, `resume_state` checks the
state with which a recording resumes.

Nothing here reads or writes a store. May import: the standard library, NumPy and google-crc32c.
"""
