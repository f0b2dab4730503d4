"""The recorder: follow an optimizer by its hooks, and write what it does to a store.

`recorder` holds the public class, and is where to begin reading. It checks its `options`, opens
a `session` (the store's writer, its thread and queue, and the tracker), and lets `hooks` call
`step`, which makes a row of every optimizer step. The `guard` decides what errors do. Rows go
through `write_queue` and `row_buffer` to the writer's thread, which `background` runs and
`host_copies` brings results to; `resume` continues a recording from a checkpoint. The package
may import `trajstore.tracking`, `trajstore.store` and below.
"""
