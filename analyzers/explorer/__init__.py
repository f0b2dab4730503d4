"""One page that shows runs: a file to open from disk, or served while a run goes on.

`page` collects what runs and their results hold, and puts the views together: the path map,
geometry, layers by epochs, the comparison of runs, and conditions. Modules that end in `_view`
make Bokeh models of data that other modules read, and compute nothing. The behaviour of the
page is in `assets/page.js`.

This package may import every topic of `analyzers`, and Bokeh; nothing imports it but the
command line.
"""
