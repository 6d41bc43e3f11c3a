"""The containers of clips that are read: one table, for the reader and for the search through folders of clips."""

from __future__ import annotations

# FFmpeg's names of them, each with the endings of file names by which clips in a folder are recognised. FFmpeg guesses
# a container by the file's content. Left alone it would take playlists too, which name other files and hosts to read.
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
