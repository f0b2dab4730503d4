"""Bokeh models of what a page shows; they compute nothing but colours and ranges."""
