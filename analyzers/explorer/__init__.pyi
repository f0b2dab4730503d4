from .page import collect, page_title, path_map, static_page

__all__ = [
    "collect",
    "page_title",
    "path_map",
    "static_page",
]
