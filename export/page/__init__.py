"""A model as one HTML page that classifies images in the browser, offline.

runtime.py   onnxruntime-web, fetched once       photo.js     an image file as the network sees it, as common/photo.py
write.py     the page on disk                    network.js   runtime and model, out of the page
                                                 drawing.js   a sheet to draw on
                                                 page.js      image in, answer out
"""

from .runtime import PageError
from .write import check_page, write_page

__all__ = ["PageError", "check_page", "write_page"]
