"""PDFs written by hand: text pages of any size, and locked ones.

Source of the lock: PDF 1.7, 7.6.3, algorithms 2 to 4 (RC4 with 40 bits).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

_PAD = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
_ID = bytes(range(16))
_ALLOWED = -4


def write_pdf(
    path: Path,
    texts: Sequence[str],
    *,
    size_pt: tuple[float, float] = (300, 400),
    password: str | None = None,
) -> Path:
    """A page with each text near its top."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    kids, streams = [], {}
    for text in texts:
        content = f"BT /F1 24 Tf 20 {size_pt[1] - 40} Td ({text}) Tj ET".encode("latin-1")
        number = len(objects) + 1
        objects.append("")
        streams[number] = content
        kids.append(number + 1)
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {size_pt[0]} {size_pt[1]}] "
            f"/Contents {number} 0 R /Resources << /Font << /F1 3 0 R >> >> >>"
        )
    listed = " ".join(f"{kid} 0 R" for kid in kids)
    objects[1] = f"<< /Type /Pages /Kids [{listed}] /Count {len(kids)} >>"
    trailer = ""
    key = b""
    if password is not None:
        key, owner, user = _lock(password)
        objects.append(
            f"<< /Filter /Standard /V 1 /R 2 /P {_ALLOWED} /O <{owner.hex()}> /U <{user.hex()}> >>"
        )
        trailer = f"/Encrypt {len(objects)} 0 R /ID [<{_ID.hex()}> <{_ID.hex()}>] "
    written = bytearray(b"%PDF-1.4\n")
    places = []
    for number, body in enumerate(objects, start=1):
        places.append(len(written))
        written += f"{number} 0 obj\n".encode()
        if number in streams:
            data = _rc4(_key_of(key, number), streams[number]) if key else streams[number]
            written += b"<< /Length %d >>\nstream\n%s\nendstream" % (len(data), data)
        written += body.encode() + b"\nendobj\n"
    start = len(written)
    written += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    written += b"".join(b"%010d 00000 n \n" % place for place in places)
    written += (
        f"trailer << /Size {len(objects) + 1} /Root 1 0 R {trailer}>>\nstartxref\n{start}\n%%EOF\n"
    ).encode()
    path.write_bytes(written)
    return path


def _lock(password: str) -> tuple[bytes, bytes, bytes]:
    """Key, owner's entry and user's entry."""
    padded = (password.encode() + _PAD)[:32]
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    key = hashlib.md5(padded + owner + struct.pack("<i", _ALLOWED) + _ID).digest()[:5]
    return key, owner, _rc4(key, _PAD)


def _key_of(key: bytes, number: int) -> bytes:
    return hashlib.md5(key + struct.pack("<I", number)[:3] + b"\0\0").digest()[:10]


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    i = j = 0
    out = bytearray()
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)
