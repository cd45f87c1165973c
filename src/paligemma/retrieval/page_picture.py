"""The picture of a page that was found, for a model that reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.errors import ImageError
from paligemma.retrieval.items import Hit, thumbnail_of
from paligemma.retrieval.page_files import PageBounds, read_page

if TYPE_CHECKING:
    from PIL import Image


def page_picture(hit: Hit, size_px: int, *, password: str | None = None) -> tuple[Image.Image, str]:
    """The page from its file, or, where that has changed or is gone, as the index keeps it.

    Args:
        hit: the page.
        size_px: side of the input of the model that reads it.
        password: of a locked PDF.

    Returns:
        The picture, and why it is the smaller one that the index keeps; "" where it is not.

    Raises:
        ImageError: neither can be read.
    """
    try:
        page = read_page(hit.path, hit.page, PageBounds(size_px=size_px, password=password))
        if page.id == hit.id:
            return page.picture, ""
        why = "it has changed"
    except ImageError as error:
        why = str(error)
    small = thumbnail_of(hit)
    if small is None:
        raise ImageError(f"page {hit.page} of {hit.path!r:.300} cannot be read again: {why}")
    return small, why
