"""Scenes of the drawn world: kind, colour, place and action; their captions, their frames and their degradation."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from rayvideo.menagerie.shapes import BLACK, SHAPES, WHITE, Colour, Pen, mix

FRAMES, SIZE, FPS = 16, 64, 8
_FINE = 3  # drawn this many times larger, then averaged down: smooth edges

IN_DOMAIN = ("cat", "dog", "rabbit", "bird", "fish", "horse", "elephant", "turtle", "frog", "duck", "butterfly", "pig")
NEW = ("snail", "giraffe", "mouse", "bee", "crab")
NON_ANIMALS = ("car", "ball", "house", "boat", "tree")
KINDS = IN_DOMAIN + NEW + NON_ANIMALS

COLOURS: dict[str, Colour] = {
    "red": (222, 40, 42),
    "orange": (245, 135, 25),
    "yellow": (248, 215, 40),
    "green": (50, 165, 65),
    "blue": (45, 95, 220),
    "purple": (140, 60, 190),
    "white": (245, 245, 242),
    "brown": (135, 82, 42),
}
PLACES: dict[str, tuple[Colour, Colour]] = {  # colour of the upper and of the lower part
    "grass": ((125, 200, 245), (95, 190, 75)),
    "sand": ((150, 215, 250), (240, 215, 140)),
    "snow": ((165, 190, 225), (235, 243, 250)),
    "night": ((22, 28, 75), (45, 60, 70)),
    "sunset": ((250, 160, 90), (120, 75, 85)),
}
ACTIONS = ("walking", "running", "jumping", "dancing")
_THINGS_DO = {"walking": "moving", "running": "racing", "jumping": "bouncing", "dancing": "swaying"}


@dataclass(frozen=True)
class Scene:
    """What a clip shows; `seed` fixes everything that the caption leaves open."""

    kind: str
    colour: str
    place: str
    action: str
    seed: int

    @property
    def verb(self) -> str:
        return _THINGS_DO[self.action] if self.kind in NON_ANIMALS else self.action


def held_out(kind: str, other: str) -> bool:
    """Whether this pair of kind and colour, or kind and action, is kept out of pre-training (one in six)."""
    others = (*COLOURS, *ACTIONS)
    return (KINDS.index(kind) * 5 + others.index(other)) % 6 == 3


def sample_scene(rng: random.Random, kinds: tuple[str, ...] = KINDS) -> Scene:
    """A random scene without held-out pairs."""
    while True:
        kind, colour, action = rng.choice(kinds), rng.choice(tuple(COLOURS)), rng.choice(ACTIONS)
        if not held_out(kind, colour) and not held_out(kind, action):
            return Scene(kind, colour, rng.choice(tuple(PLACES)), action, rng.getrandbits(32))


def caption_of(scene: Scene, rng: random.Random) -> str:
    """One of the ways to describe a scene: one or two words, or a sentence. Quality is never mentioned."""
    return rng.choice(
        (
            f"{scene.colour} {scene.kind}",
            f"{scene.kind} {scene.verb}",
            f"{scene.colour} {scene.kind} {scene.verb}",
            _sentence(scene),
            _sentence(scene, scene.colour),
        )
    )


def _sentence(scene: Scene, colour: str = "") -> str:
    subject = f"{colour} {scene.kind}".strip()
    where = f"at {scene.place}" if scene.place in ("night", "sunset") else f"on the {scene.place}"
    return f"{'An' if subject[0] in 'aeiou' else 'A'} {subject} is {scene.verb} {where}."


def evaluation_captions() -> dict[str, list[str]]:
    """Captions of pairs that pre-training never saw together; sentences for the things, as in the paper's lists."""
    sets: dict[str, list[str]] = {"in_domain": [], "new": [], "non": []}
    for name, kinds in (("in_domain", IN_DOMAIN), ("new", NEW), ("non", NON_ANIMALS)):
        for kind in kinds:
            turn = KINDS.index(kind)
            for colour in (c for c in COLOURS if held_out(kind, c)):
                if name == "non":
                    for i in range(2):
                        place = list(PLACES)[(turn + 2 * i) % len(PLACES)]
                        scene = Scene(kind, colour, place, ACTIONS[(turn + i) % len(ACTIONS)], 0)
                        sets[name].append(_sentence(scene, scene.colour))
                else:
                    scene = Scene(kind, colour, "grass", ACTIONS[turn % len(ACTIONS)], 0)
                    sets[name] += [f"{colour} {kind}", f"{colour} {kind} {scene.verb}"]
            for action in (a for a in ACTIONS if held_out(kind, a)):
                scene = Scene(kind, list(COLOURS)[turn % len(COLOURS)], "sand", action, 0)
                sets[name].append(_sentence(scene, scene.colour) if name == "non" else f"{kind} {scene.verb}")
    return sets


def scene_of(caption: str, rng: random.Random) -> Scene:
    """A scene that a caption of this world describes; what the caption leaves open is drawn."""
    words = caption.lower().replace(".", " ").split()
    doing = {**{action: action for action in ACTIONS}, **{verb: action for action, verb in _THINGS_DO.items()}}

    def named(what: Iterable[str]) -> str:
        what = tuple(what)
        return next((word for word in words if word in what), None) or rng.choice(what)

    kind, colour, place = named(KINDS), named(COLOURS), named(PLACES)
    verb = named(_THINGS_DO.values() if kind in NON_ANIMALS else ACTIONS)
    return Scene(kind, colour, place, doing[verb], rng.getrandbits(32))


def kind_in(caption: str) -> str | None:
    """The kind that a caption names."""
    words = caption.lower().replace(".", " ").split()
    return next((kind for kind in KINDS if kind in words), None)


def draw(scene: Scene, count: int = FRAMES) -> np.ndarray:
    """Clean frames of a scene: float32 [count, 64, 64, 3] in [0, 1]; of any number they show the same two seconds."""
    rng = random.Random(scene.seed)
    side = SIZE * _FINE
    background = _background(scene.place, rng, side)
    shade = COLOURS[scene.colour]
    colour = mix(shade, (rng.randrange(256), rng.randrange(256), rng.randrange(256)), 0.08)
    left = rng.random() < 0.5
    radius = side * rng.uniform(0.36, 0.42)
    start, stride = rng.random(), rng.uniform(0.9, 1.1)
    frames = np.empty((count, SIZE, SIZE, 3), np.float32)
    for frame in range(count):
        x, y, tilt, stretch, phase = _pose(scene.action, frame / (count - 1), start, stride)
        image = background.copy()
        centre = (side * (0.5 + (-x if left else x)), side * (0.56 + y))
        SHAPES[scene.kind](Pen(image, centre, radius, -tilt if left else tilt, stretch, left), colour, phase % 1.0)
        frames[frame] = np.asarray(image.reduce(_FINE), np.float32) / 255
    return frames


def _pose(action: str, time: float, start: float, stride: float) -> tuple[float, float, float, float, float]:
    """Offset x and y in frame widths, tilt in radians, vertical stretch and stride phase at `time` in [0, 1]."""
    turn = 2 * math.pi
    if action == "walking":
        return 0.24 * (time - 0.5) * stride, 0.0, 0.0, 1.0, start + 1.5 * time
    if action == "running":
        bob = abs(math.sin(turn * 1.5 * time))
        return 0.5 * (time - 0.5) * stride, -0.05 * bob, 0.12, 1.0, start + 3 * time
    if action == "jumping":
        hop = abs(math.sin(math.pi * (2 * stride * time + start)))
        return 0.0, 0.12 - 0.26 * hop, 0.0, 0.9 + 0.15 * hop, start
    sway = math.sin(turn * (1.5 * stride * time + start))
    return 0.06 * sway, 0.0, 0.35 * sway, 1.0, start + 1.5 * time


def _background(place: str, rng: random.Random, side: int) -> Image.Image:
    upper, lower = PLACES[place]
    horizon = rng.uniform(0.5, 0.68)
    row = np.arange(side)[:, None] / side
    sky = np.array(upper) + (np.array(mix(upper, WHITE, 0.35)) - upper) * (row / horizon)
    ground = np.array(lower) + (np.array(mix(lower, BLACK, 0.3)) - lower) * (row - horizon) / (1 - horizon)
    image = Image.fromarray(np.repeat(np.where(row < horizon, sky, ground)[:, None], side, 1).round().astype(np.uint8))
    pen = Pen(image, (0, 0), side, 0.0, 1.0, False)
    if place in ("night", "sunset"):
        pen.oval(rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.3), 0.08, 0.08, (255, 240, 190))
    else:
        x, y = rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.25)
        for dx in (-0.08, 0.0, 0.08):
            pen.oval(x + dx, y, 0.09, 0.05, WHITE)
    for _ in range(8):
        x, y = rng.random(), rng.uniform(horizon + 0.04, 1.0)
        pen.oval(x, y, 0.05, 0.015, mix(lower, BLACK, 0.25))
    return image


@dataclass(frozen=True)
class Degradation:
    """How poor a clip is; all zeros leave it clean. Strengths are shares in [0, 1], blur is in pixels."""

    blur: float = 0.0
    grey: float = 0.0
    flat: float = 0.0
    veil: float = 0.0
    noise: float = 0.0

    @property
    def clean(self) -> bool:
        return self == Degradation()


def sample_degradation(rng: random.Random, share: float = 0.8, counts: tuple[int, ...] = (2, 2, 3)) -> Degradation:
    """Nothing for 1 - share of the clips; else as many faults as one of `counts` says, of different strength."""
    if rng.random() >= share:
        return Degradation()
    faults = {
        "blur": rng.uniform(0.7, 1.3),
        "grey": rng.uniform(0.4, 0.75),
        "flat": rng.uniform(0.25, 0.5),
        "veil": rng.uniform(0.15, 0.4),
        "noise": rng.uniform(0.015, 0.04),
    }
    kept = rng.sample(sorted(faults), rng.choice(counts))
    return replace(Degradation(), **{name: faults[name] for name in kept})


def degrade(frames: np.ndarray, how: Degradation, seed: int) -> np.ndarray:
    """Blur, loss of colour, low contrast, a light veil, sensor noise: float32 [F, H, W, 3] in [0, 1], same shape."""
    if how.clean:
        return frames
    out = gaussian_filter(frames, (0, how.blur, how.blur, 0)) if how.blur else frames.copy()
    out += how.grey * (out.mean(-1, keepdims=True) - out)
    out += how.flat * (out.mean((1, 2), keepdims=True) - out)
    out += how.veil * (0.78 - out)
    if how.noise:
        noise = np.random.default_rng(seed).normal(0, how.noise, frames.shape)
        out += gaussian_filter(noise, (0, 0.5, 0.5, 0)) * 1.6  # as a codec leaves it: slightly smooth
    return out.clip(0, 1).astype(np.float32)
