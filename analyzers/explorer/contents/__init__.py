"""What a page shows of a run, as arrays: curves, images, conditions, distances.

Nothing here knows Bokeh. Start with `shown_run`, which gives runs names and an axis of epochs.
"""
