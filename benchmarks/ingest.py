"""Clips per second of `prepare` against a plain loop over the same functions, by codec, and its memory as clips grow.

    python -m benchmarks.ingest --rounds 3 --json ingest.json > ingest.md
    python -m benchmarks.ingest --quick                     # two codecs, few clips, one round, ten times the clips

The menagerie's drawn clips are written in several codecs and prepared with its VAE and text tower on the CPU: through
Ray Data as `rayvideo.data.latents.prepare_to` does, and by a loop in this process that calls the same functions one
after the other. Both turn the same number of threads loose on a model, and take turns. Clips per second are those
between the first and the last file of latents, which leaves out the start of processes; that is told apart, as the
seconds until the first file. Memory is what Ray's processes and this one hold for themselves, and what of Ray's object
store was touched, the most at any moment.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import av
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from av.video.frame import VideoFrame

from benchmarks.machine import in_words, machine
from rayvideo.connection import start_ray
from rayvideo.data import latents, tasks
from rayvideo.data.encoders import CaptionEncoder, ClipEncoder
from rayvideo.data.video import write_clip
from rayvideo.menagerie.clips import training_scenes
from rayvideo.menagerie.world import FPS, draw
from rayvideo.recipe import Recipe, load_recipe

RECIPE = Path(__file__).resolve().parents[1] / "jobs/recipes/menagerie-demo.yaml"
CODECS = {
    "H.264, 64²": ("libx264", "mp4", 64, {}),
    "H.264": ("libx264", "mp4", 256, {}),
    "H.265": ("libx265", "mp4", 256, {"x265-params": "log-level=none"}),
    "VP9": ("libvpx-vp9", "webm", 256, {"cpu-used": "8", "deadline": "realtime"}),
    "AV1": ("libsvtav1", "mp4", 256, {"preset": "12"}),
    "MPEG-4": ("mpeg4", "avi", 256, {"q:v": "3"}),
}
"""Name -> encoder, container, height and width, the encoder's options. The first is what the recipes' clips are."""
QUICK = ("H.264, 64²", "VP9")
FILES = 16  # different clips of each codec, which lists repeat
MIB = 2**20
SAMPLE_S = 0.25


@dataclass
class Measured:
    """One way's figures of one run."""

    first_s: float
    """Until the first file of latents was there."""
    rate: float
    """Clips per second from then on."""
    seconds: float
    """Of the whole, captions too."""


@dataclass
class Memory:
    """The most that was held at once, in MiB."""

    private: float = 0.0
    """By the processes for themselves."""
    shared: float = 0.0
    """By the process that shares most: Ray's object store."""
    processes: list[int] = field(default_factory=list)
    """How many there were, at each look."""


def write_files(folder: Path, codec: str) -> list[Path]:
    """The first training scenes as clips of a codec."""
    encoder, ending, size, options = CODECS[codec]
    os.environ.setdefault("SVT_LOG", "1")  # the encoder of AV1 tells its settings otherwise
    folder.mkdir()
    files = []
    for number, (scene, _) in enumerate(training_scenes(FILES, seed=100)):
        pixels = (draw(scene) * 255).round().astype("uint8")
        pixels = pixels.repeat(size // pixels.shape[1], axis=1).repeat(size // pixels.shape[2], axis=2)
        files.append(folder / f"{number}.{ending}")
        if encoder == "libx264":
            write_clip(files[-1], pixels, fps=FPS)
            continue
        with av.open(str(files[-1]), "w") as container:
            stream: Any = container.add_stream(encoder, rate=FPS, options=options)
            stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
            for frame in pixels:
                container.mux(stream.encode(VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    return files


def listed(files: Sequence[Path], clips: int) -> str:
    """A list of so many clips, which repeats the files; every caption is another one, as if they were others."""
    return "".join(f"{files[n % len(files)]}|||clip {n} of an animal\n" for n in range(clips))


def plain(recipe: Recipe, out: str) -> None:
    """What `prepare_to` does, in this process and one thing after the other."""
    entries, shape = latents._entries(recipe), latents._latent_shape(recipe)
    encode_clips = ClipEncoder(recipe.model, "cpu", shape)
    Path(out, "clips").mkdir(parents=True)
    waiting: list[pa.Table] = []
    for start in range(0, len(entries), recipe.data.batch_size):
        part = entries[start : start + recipe.data.batch_size]
        rows = {
            "id": pa.array(range(start, start + len(part)), pa.int64()),
            "video": pa.array([entry["video"] for entry in part]),
            "caption": pa.array([entry["caption"] for entry in part]),
        }
        waiting.append(encode_clips(tasks.decode(pa.table(rows), recipe.data)))
        if sum(map(len, waiting)) >= latents.CLIPS_PER_SHARD or start + len(part) == len(entries):
            tasks.write_shard(pa.concat_tables(waiting), out)
            waiting = []
    embed = CaptionEncoder(recipe.model, "cpu")
    captions = latents._captions(recipe, entries)
    blocks = [
        embed(pa.table({"caption": captions[start : start + latents.CAPTIONS_PER_CALL]}))
        for start in range(0, len(captions), latents.CAPTIONS_PER_CALL)
    ]
    pq.write_table(pa.concat_tables(blocks), f"{out}/captions.parquet", row_group_size=1, **tasks.FORMAT)


def through_ray(recipe: Recipe, out: str) -> None:
    """`prepare_to`."""
    latents.prepare_to(recipe, out)


WAYS = {"prepare": through_ray, "plain loop": plain}


def measure(way: str, recipe: Recipe, out: Path) -> Measured:
    """Prepare the recipe's clips in one of the ways."""
    began, clock = time.time(), time.perf_counter()
    WAYS[way](recipe, str(out))
    seconds = time.perf_counter() - clock
    files = [(file.stat().st_mtime - began, pq.read_metadata(file).num_rows) for file in out.glob("clips/*.parquet")]
    return Measured(*pace(files), seconds)


def pace(files: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Seconds until the first file, and clips per second after it, of files with (time of writing, clips).

    Raises:
        ValueError: a single file has no pace.
    """
    if len(files) < 2:
        raise ValueError(f"{len(files)} file of latents: too few clips to have a pace")
    times = sorted(files)
    return times[0][0], sum(clips for _, clips in times[1:]) / (times[-1][0] - times[0][0])


@contextmanager
def watched() -> Iterator[Memory]:
    """Look at this process and all that descend from it, Ray's among them, while the block runs."""
    memory, done = Memory(), threading.Event()

    def look() -> None:
        while not done.wait(SAMPLE_S):
            held = []
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    held.append(process.memory_info())
                except psutil.NoSuchProcess:
                    continue
            memory.private = max(memory.private, sum(each.rss - each.shared for each in held) / MIB)
            memory.shared = max(memory.shared, max(each.shared for each in held) / MIB)
            memory.processes.append(len(held))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()


def codec_table(found: dict[str, dict[str, list[Measured]]]) -> str:
    """Medians by codec, and the median of the rounds' ratios."""
    rows = ["| | prepare, clips/s | plain loop, clips/s | ratio | first file: prepare, s | plain loop, s |"]
    rows.append("|---|---|---|---|---|---|")
    for codec, ways in found.items():
        ours, loop = ways["prepare"], ways["plain loop"]
        ratio = median(a.rate / b.rate for a, b in zip(ours, loop, strict=True))
        cells = [
            f"{median(each.rate for each in ours):.1f}",
            f"{median(each.rate for each in loop):.1f}",
            f"{ratio:.2f}",
            f"{median(each.first_s for each in ours):.1f}",
            f"{median(each.first_s for each in loop):.1f}",
        ]
        rows.append(f"| {codec} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def memory_table(found: dict[int, tuple[Measured, Memory]]) -> str:
    """A line for each number of clips."""
    rows = ["| clips | private memory, MiB | object store, MiB | clips/s | s |", "|---|---|---|---|---|"]
    for clips, (measured, memory) in found.items():
        rows.append(
            f"| {clips} | {memory.private:.0f} | {memory.shared:.0f} | {measured.rate:.1f} | {measured.seconds:.0f} |"
        )
    return "\n".join(rows)


def ratios(found: dict[str, dict[str, list[Measured]]], grown: dict[int, tuple[Measured, Memory]]) -> dict[str, float]:
    """Figures that don't depend on how fast a machine is; the lower, the better."""
    times = {
        f"a clip, prepare / plain loop: {codec}": median(
            loop.rate / ours.rate for ours, loop in zip(ways["prepare"], ways["plain loop"], strict=True)
        )
        for codec, ways in found.items()
    }
    sizes = sorted(grown)
    memory = {
        f"private memory, {size // sizes[0]} times the clips": grown[size][1].private / grown[sizes[0]][1].private
        for size in sizes[1:]
    }
    return {**times, **memory}


def recipe_of(listing: Path) -> Recipe:
    """The demo's, with this list of clips."""
    return load_recipe(RECIPE, [f"data.manifest={listing}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="after one that warms up")
    parser.add_argument("--clips", type=int, default=320, help="of each codec")
    parser.add_argument("--grow", type=int, default=40, help="clips that are taken once, ten times and a hundred times")
    parser.add_argument("--quick", action="store_true", help="two codecs, 96 clips, one round; 64 and 640 clips")
    parser.add_argument("--json", type=Path, help="file for every round's figures")
    arguments = parser.parse_args()
    about = machine()
    os.chdir(RECIPE.parents[2])
    codecs, clips, rounds, warm = list(CODECS), arguments.clips, arguments.rounds, 1
    sizes = [arguments.grow * factor for factor in (1, 10, 100)]
    if arguments.quick:
        codecs, clips, rounds, warm, sizes = list(QUICK), 96, 1, 0, [64, 640]
    found: dict[str, dict[str, list[Measured]]] = {codec: {way: [] for way in WAYS} for codec in codecs}
    grown: dict[int, tuple[Measured, Memory]] = {}
    with TemporaryDirectory() as folder:
        files = {codec: write_files(Path(folder, str(n)), codec) for n, codec in enumerate(codecs)}
        listing = Path(folder, "clips.txt")
        listing.write_text(listed(files[codecs[0]], clips))
        recipe = recipe_of(listing)
        torch.set_num_threads(max(1, int(recipe.data.encoder_cpus)))  # as many as Ray gives an encoder
        start_ray(recipe, "data")
        for number in range(rounds + warm):
            for codec in codecs:
                listing.write_text(listed(files[codec], clips))
                for way in list(WAYS)[:: -1 if number % 2 else 1]:
                    measured = measure(way, recipe, Path(folder, f"{number}-{codec}-{way}"))
                    print(f"{codec}, {way}, round {number}: {measured}", file=sys.stderr, flush=True)
                    if number >= warm:
                        found[codec][way].append(measured)
        for size in sizes:
            listing.write_text(listed(files[codecs[0]], size))
            with watched() as memory:
                measured = measure("prepare", recipe, Path(folder, f"grown-{size}"))
            grown[size] = measured, memory
    if arguments.json:
        rates = {
            codec: {way: [asdict(each) for each in runs] for way, runs in ways.items()} for codec, ways in found.items()
        }
        growth = {size: {**asdict(measured), **asdict(memory)} for size, (measured, memory) in grown.items()}
        figures = {"machine": about, "codecs": rates, "memory": growth, "ratios": ratios(found, grown)}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"{in_words(about)} {clips} clips of a codec, medians of {rounds}.\n")
    print(f"{codec_table(found)}\n\n{memory_table(grown)}")


if __name__ == "__main__":
    main()
