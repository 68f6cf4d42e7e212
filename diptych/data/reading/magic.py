"""Magic: whether bytes are a picture, and of which kind, told by how they begin."""

from __future__ import annotations

import re

MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
AVIF = (b"avif", b"avis")
HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
MAX_IMAGE_BYTES = 64 << 20
"""Size of an encoded picture that is still read."""
HEAD_BYTES = 128
"""So many first bytes tell whether a file is a picture."""
_UNREAD_MAGIC = (b"8BPS", b"\0\0\0\x0cJXL ", b"\0\0\0\x0cjP  ")
# A text may begin with the two letters of a bitmap, or with those of a portable one.
_BMP_HEADERS = tuple(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))
_PNM = re.compile(rb"P[1-6f]\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s")


def is_picture(head: bytes) -> bool:
    """Whether a file that begins so is a picture, also one of a kind that `decode` refuses.

    Args:
        head: its first HEAD_BYTES.
    """
    is_bmp = head[:2] == b"BM" and head[14:18] in _BMP_HEADERS
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    is_known = head.startswith((*MAGIC, *_UNREAD_MAGIC)) or brand(head) in (*AVIF, *HEIC)
    return is_known or is_webp or is_bmp or _PNM.match(head) is not None


def brand(head: bytes) -> bytes:
    """What a file of ISO's media format says that it is."""
    return head[8:12] if head[4:8] == b"ftyp" else b""
