"""Formats beyond those of Pillow: HEIC by its plugin, and the names of what is not read."""

from __future__ import annotations

from contextlib import suppress

from paligemma.stand_ins import stand_in

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1")
_KINDS = (
    (b"%PDF", "it is a PDF, whose pages pdftoppm -png makes pictures of and paligemma index finds"),
    (b"\x93NUMPY", "it is an array of NumPy; pass what numpy.load gives"),
    (b"PK\x03\x04", "it is an archive, which may hold pictures"),
    (b"8BPS", "it is a document of Photoshop"),
    (b"\xff\x0a", "it is a JPEG XL"),
    (b"\0\0\0\x0cJXL ", "it is a JPEG XL"),
)


def register_heif() -> None:
    """Let Pillow read HEIC where the package for it is installed."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


def kind_of_data(data: bytes) -> str:
    """What data that is no picture are, in parentheses, with the way out; "" if unknown."""
    from PIL import Image

    is_heif = data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS
    if is_heif and "HEIF" not in Image.OPEN:
        said: str | None = "it is HEIC, which needs pip install 'paligemma[heif]'"
    elif b"<svg" in data[:512]:
        said = "it is an SVG drawing"
    else:
        said = next((name for magic, name in _KINDS if data.startswith(magic)), stand_in(data))
    return f" ({said})" if said else ""
