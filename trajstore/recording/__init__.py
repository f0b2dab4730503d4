"""The recorder: follow an optimizer through its hooks, and write its steps to a store.

Begin reading with `recorder`, which holds the public class. It checks its `options`, opens a
`session` (the store's writer, its thread and queue, and the tracker), and lets `hooks` call
`step`, which makes a row of every optimizer step. The `guard` handles errors. Rows pass through
`row_buffer` and `write_queue` to the writer thread, which `background` runs; `host_copies`
copies results from the device for the writer thread. `resume` continues a recording from a
checkpoint. The package may import `trajstore.tracking`, `trajstore.store` and below.
"""
