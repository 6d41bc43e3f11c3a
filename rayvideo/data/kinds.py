"""Files that are named like clips and are something else: what they are, by their first bytes."""

from __future__ import annotations

HEAD_BYTES = 2**16
"""How much of a file `kind` has to see: the mark of an animated PNG may come after a colour profile."""
PICTURE = "a picture ({}), not a clip"
ANIMATION = "an animated {}, which is not read; convert it to mp4"
AUDIO = "audio ({}), no video stream"
PICTURE_BRANDS = {b"heic": "heic", b"heix": "heic", b"mif1": "heif", b"msf1": "heif", b"avif": "avif"}
STARTS = (
    (b"\xff\xd8\xff", PICTURE.format("jpeg")),
    (b"II*\0", PICTURE.format("tiff")),
    (b"MM\0*", PICTURE.format("tiff")),
    (b"fLaC", AUDIO.format("flac")),
    (b"\xff\xfb", AUDIO.format("mp3")),
    (b"\xff\xf3", AUDIO.format("mp3")),
    (b"\xff\xf1", AUDIO.format("aac")),
    (b"\xff\xf9", AUDIO.format("aac")),
    (b"PK\3\4", "a zip archive; unpack it"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the clip; run git lfs pull"),
)


def kind(head: bytes) -> str | None:
    """What the message says of a file that begins with these bytes; None if they name nothing that is known here."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return ANIMATION.format("PNG") if b"acTL" in head else PICTURE.format("png")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        moves = head[12:16] == b"VP8X" and len(head) > 20 and head[20] & 2
        return ANIMATION.format("WebP") if moves else PICTURE.format("webp")
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return AUDIO.format("wav")
    if head.startswith(b"ID3"):
        return "audio with a cover picture (mp3), no video stream" if b"APIC" in head else AUDIO.format("mp3")
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return PICTURE.format("bmp")
    if head[4:8] == b"ftyp" and head[8:12] in PICTURE_BRANDS:
        return PICTURE.format(PICTURE_BRANDS[head[8:12]])
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page (html), as a failed download leaves it"
    return next((what for start, what in STARTS if head.startswith(start)), None)
