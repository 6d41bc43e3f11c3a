"""What clips come in: one table for the reader and for folders of clips."""

from __future__ import annotations

# FFmpeg guesses by content, and would also take playlists, which name other files and hosts; so it may guess among
# these alone. Beside each stand the endings of file names by which a folder's clips are known.
CONTAINERS = {
    "mov": (".mp4", ".mov", ".m4v", ".qt", ".3gp", ".3g2", ".f4v", ".mj2"),
    "matroska": (".mkv", ".webm", ".mk3d"),
    "avi": (".avi", ".divx"),
    "gif": (".gif",),
    "mpeg": (".mpg", ".mpeg", ".mpe", ".m2p", ".vob"),
    "mpegts": (".ts", ".mts", ".m2ts", ".m2t"),
    "flv": (".flv",),
    "asf": (".wmv", ".asf"),
    "ogg": (".ogv", ".ogm"),
    "mxf": (".mxf",),
}
WHITELIST = ",".join(CONTAINERS)
ENDINGS = tuple(ending for endings in CONTAINERS.values() for ending in endings)


def is_clip_name(name: str) -> bool:
    """Whether a file's name ends like a clip's, in upper or lower case."""
    return name.lower().endswith(ENDINGS)
