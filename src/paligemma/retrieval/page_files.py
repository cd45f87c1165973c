"""Pages of documents as pictures: PDFs, pictures, and folders of both.

A PDF is drawn by a process of its own (`page_process`), within bounds of pages, pixels, memory and
time. What cannot be read becomes a `PageFault` in its place, and the rest goes on.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from paligemma.errors import ConfigError, ImageError
from paligemma.processing.folders import files_of, is_picture_name
from paligemma.processing.image import MAX_PIXELS, load_image, open_heading
from paligemma.retrieval.page_worker import PdfFailed, PdfPages

if TYPE_CHECKING:
    from PIL import Image

MAX_PAGES = 2_000  # of one file
MAX_FILE_BYTES = 1 << 30
PAGE_TIMEOUT_S = 60.0
MAX_PAGE_PIXELS = 16_000_000  # of a page that is drawn
MAX_FAILED = 5  # pages of one PDF that end their process or take too long; then it is given up
PDF = ".pdf"
# A page is drawn with a shorter side of so many times the model's, whose resizing then averages.
OVERSAMPLING = 2
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Page:
    """One page.

    Attributes:
        id: sha256 of the file's content and number of the page, "sha256:page".
        path: file it was read from.
        number: of the page, from 1.
        num_pages: of the file.
        picture: RGB.
        text: start of its text layer, to be shown; no model reads it.
    """

    id: str
    path: str
    number: int
    num_pages: int
    picture: Image.Image
    text: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture, pixels."""
        return self.picture.size


@dataclass(frozen=True, kw_only=True)
class PageFault:
    """What could not be read.

    Attributes:
        path: the file.
        number: of the page, from 1; None for the whole file.
        reason: a sentence.
    """

    path: str
    number: int | None
    reason: str

    def __str__(self) -> str:
        page = "" if self.number is None else f", page {self.number}"
        return f"{self.path}{page}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class PageBounds:
    """What pages may cost, and how large they are drawn.

    Attributes:
        size_px: side of the model's input; a page is drawn `OVERSAMPLING` times as large.
        max_pages: of one file; the pages after that are left out with a fault.
        max_pixels: of a picture, and of a page that is drawn, which is drawn smaller instead.
        timeout_s: time for one page.
        password: of PDFs that are locked.
    """

    size_px: int = 448
    max_pages: int = MAX_PAGES
    max_pixels: int = MAX_PAGE_PIXELS
    timeout_s: float = PAGE_TIMEOUT_S
    password: str | None = None

    def __post_init__(self) -> None:
        whole = {"size_px": 4096, "max_pages": 1_000_000, "max_pixels": MAX_PIXELS}
        for name, largest in whole.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= largest:
                raise ConfigError(f"{name} is a whole number in 1..{largest}, got {value!r:.100}")
        if not 0 < self.timeout_s <= 86_400:
            raise ConfigError(f"timeout_s lies in 0..86400 s, got {self.timeout_s!r:.100}")


def pages_of(
    paths: Iterable[str | os.PathLike[str]],
    bounds: PageBounds | None = None,
    *,
    is_known: Callable[[str], bool] = lambda page_id: False,
    on_file: Callable[[str, str], None] = lambda path, digest: None,
) -> Iterator[Page | PageFault]:
    """The pages of files, folders and patterns, one by one, in order.

    Args:
        is_known: pages of which ids are left out, unread.
        on_file: called with the path and the sha256 of each file, before its pages.
    """
    bounds = bounds or PageBounds()
    for path in paths:
        place = os.fspath(path)
        try:
            found = files_of(place, also=frozenset({PDF}))
        except ImageError as error:
            yield PageFault(path=place, number=None, reason=str(error))
            continue
        for one in [place] if found is None else found:
            yield from _pages_of_file(one, bounds, is_known, on_file)


def read_page(path: str, number: int, bounds: PageBounds | None = None) -> Page:
    """One page of a file.

    Raises:
        ImageError: it cannot be read.
    """
    bounds = replace(bounds or PageBounds(), max_pages=1_000_000)
    for found in _pages_of_file(path, bounds, lambda page_id: _number(page_id) != number):
        if isinstance(found, Page):
            return found
        raise ImageError(str(found))
    raise ImageError(f"{path!r:.300} has no page {number}; the first is 1")


def _number(page_id: str) -> int:
    return int(page_id.rpartition(":")[2])


def _pages_of_file(
    path: str,
    bounds: PageBounds,
    is_known: Callable[[str], bool],
    on_file: Callable[[str, str], None] = lambda path, digest: None,
) -> Iterator[Page | PageFault]:
    try:
        digest, is_pdf = _digest(path)
    except ImageError as error:
        yield PageFault(path=path, number=None, reason=str(error))
        return
    on_file(path, digest)
    if is_pdf or path.lower().endswith(PDF):
        yield from _pages_of_pdf(path, digest, bounds, is_known)
        return
    yield from _pages_of_picture(path, digest, bounds, is_known)


def _pages_of_picture(
    path: str, digest: str, bounds: PageBounds, is_known: Callable[[str], bool]
) -> Iterator[Page | PageFault]:
    """The picture, or the pages of a TIFF."""
    from PIL import Image

    number, num_pages = 1, None
    while num_pages is None or number <= min(num_pages, bounds.max_pages):
        page_id = f"{digest}:{number}"
        if not is_known(page_id):
            try:
                pixels = load_image(path, frame=number - 1, allow_video=False)
            except ImageError as error:
                if num_pages is None:
                    yield PageFault(path=path, number=None, reason=_why_no_document(path, error))
                    return
                yield PageFault(path=path, number=number, reason=str(error))
            else:
                num_pages = num_pages or _num_pages(path)
                picture = _within(Image.fromarray(pixels), bounds.max_pixels)
                yield Page(
                    id=page_id, path=path, number=number, num_pages=num_pages, picture=picture
                )
        num_pages = num_pages or _num_pages(path)
        number += 1
    if num_pages > bounds.max_pages:
        yield _too_many(path, num_pages, bounds)


def _why_no_document(path: str, error: ImageError) -> str:
    """Why a file cannot be read: as a picture, or because it is of another kind altogether."""
    if is_picture_name(path):
        return str(error)
    try:
        with open_heading(Path(path)):
            return str(error)
    except Exception:  # damaged headings raise whatever a plugin stumbles over
        return "a document must be a PDF or a picture, this file is neither; print it to a PDF"


def _num_pages(path: str) -> int:
    """Pages of a TIFF that was read before; 1 of any other picture."""
    try:
        with open_heading(Path(path)) as picture:
            is_tiff = picture.format == "TIFF"
            return int(getattr(picture, "n_frames", 1)) if is_tiff else 1
    except Exception:  # damaged headings raise whatever a plugin stumbles over
        return 1


def _within(picture: Image.Image, max_pixels: int) -> Image.Image:
    """The picture, made smaller if it has more pixels."""
    from PIL import Image

    factor = (picture.width * picture.height / max_pixels) ** 0.5
    if factor <= 1:
        return picture
    width, height = (max(1, int(side / factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def _pages_of_pdf(
    path: str, digest: str, bounds: PageBounds, is_known: Callable[[str], bool]
) -> Iterator[Page | PageFault]:
    """The pages of a PDF; after a page that ends the process, another process goes on."""
    number, num_pages, num_failed = 1, None, 0
    while num_pages is None or number <= min(num_pages, bounds.max_pages):
        try:
            with PdfPages(path, bounds.password, bounds.timeout_s) as pages:
                num_pages = pages.num_pages
                while number <= min(num_pages, bounds.max_pages):
                    page_id = f"{digest}:{number}"
                    if not is_known(page_id):
                        try:
                            picture, text = pages.draw(
                                number - 1, OVERSAMPLING * bounds.size_px, bounds.max_pixels
                            )
                        except ImageError as error:
                            yield PageFault(path=path, number=number, reason=str(error))
                        else:
                            yield Page(
                                id=page_id,
                                path=path,
                                number=number,
                                num_pages=num_pages,
                                picture=picture,
                                text=text,
                            )
                    number += 1
        except PdfFailed as error:
            yield PageFault(path=path, number=number if num_pages else None, reason=str(error))
            if num_pages is None:
                return
            number, num_failed = number + 1, num_failed + 1
            if num_failed == MAX_FAILED:
                if number <= min(num_pages, bounds.max_pages):
                    yield _given_up(path, number)
                return
        except ImageError as error:
            yield PageFault(path=path, number=None, reason=str(error))
            return
    if num_pages > bounds.max_pages:
        yield _too_many(path, num_pages, bounds)


def _given_up(path: str, number: int) -> PageFault:
    reason = f"{MAX_FAILED} pages of the file ended their process or took too long, and the rest is"
    return PageFault(path=path, number=number, reason=f"{reason} left out; repair or split it")


def _too_many(path: str, num_pages: int, bounds: PageBounds) -> PageFault:
    return PageFault(
        path=path,
        number=bounds.max_pages + 1,
        reason=f"--max-pages is {bounds.max_pages}, the file has {num_pages}, and the rest is left "
        "out; allow more",
    )


def _digest(path: str) -> tuple[str, bool]:
    """sha256 of a file, and whether its content begins as that of a PDF.

    Raises:
        ImageError: it cannot be read, is no file, or too large.
    """
    digest, size, is_pdf = hashlib.sha256(), 0, False
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise ImageError(f"a document is a file, {path!r:.300} is none")
        with open(Path(path), "rb") as file:
            while piece := file.read(_PIECE):
                if not size:
                    is_pdf = b"%PDF-" in piece[:1024]
                digest.update(piece)
                size += len(piece)
                if size > MAX_FILE_BYTES:
                    raise ImageError(f"a document may have {MAX_FILE_BYTES >> 20} MB, it has more")
    except (OSError, ValueError) as error:
        raise ImageError(
            f"a document must be a file that can be read ({getattr(error, 'strerror', error)})"
        ) from error
    return digest.hexdigest(), is_pdf
