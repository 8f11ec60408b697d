"""A model as one HTML page that classifies images in the browser, offline.

runtime.py   onnxruntime-web, downloaded once    photo.js     preprocessing of image files, as in common/photo.py
write.py     the page as a file                  network.js   runtime and model, and the classification of an image
                                                 drawing.js   a sheet to draw on
                                                 page.js      input of images, display of predictions
"""

from .runtime import PageError
from .write import check_page, write_page

__all__ = ["PageError", "check_page", "write_page"]
