"""One page that shows runs: a file to open from disk, or served while a run goes on.

`contents` reads what runs and their results hold, `views` makes Bokeh models of it, and `page`
puts the views together: the path map, geometry, layers by epochs, the comparison of runs, and
conditions. The behaviour of the page is in `assets/page.js`. `live` serves the page.

This package may import every topic of `analyzers`, and Bokeh; nothing imports it but the
command line.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
