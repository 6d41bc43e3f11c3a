"""How each kind looks: flat shapes in a unit box, drawn with a pen that moves, turns and scales them.

Coordinates run from -1 to 1, x to the right, y down; everything faces right. `phase` in [0, 1) is the stride.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
BLACK: Colour = (20, 20, 24)
WHITE: Colour = (250, 250, 248)


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`first` with `share` in [0, 1] of `second` mixed in."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))  # type: ignore[return-value]


class Pen:
    """Draws shapes of the unit box onto an image through one similarity transform."""

    def __init__(
        self, image: Image.Image, centre: tuple[float, float], radius: float, tilt: float, stretch: float, left: bool
    ) -> None:
        self.draw = ImageDraw.Draw(image)
        self.centre = np.array(centre)
        self.radius = radius
        turn = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
        self.matrix = radius * turn @ np.diag([-1.0 if left else 1.0, stretch])

    def _place(self, points: np.ndarray) -> list[tuple[float, float]]:
        return [tuple(p) for p in points @ self.matrix.T + self.centre]

    def poly(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        self.draw.polygon(self._place(np.array(points, dtype=float)), fill=colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour, turn: float = 0.0) -> None:
        angle = np.linspace(0, 2 * math.pi, 28, endpoint=False)
        px, py = rx * np.cos(angle), ry * np.sin(angle)
        cos, sin = math.cos(turn), math.sin(turn)
        points = np.stack([x + px * cos - py * sin, y + px * sin + py * cos], 1)
        self.draw.polygon(self._place(points), fill=colour)

    def line(self, points: Sequence[tuple[float, float]], width: float, colour: Colour) -> None:
        placed = self._place(np.array(points, dtype=float))
        self.draw.line(placed, fill=colour, width=max(1, round(width * self.radius)), joint="curve")

    def eye(self, x: float, y: float, size: float = 0.09) -> None:
        self.oval(x, y, size, size, WHITE)
        self.oval(x + size * 0.3, y, size * 0.55, size * 0.55, BLACK)


Shape = Callable[[Pen, Colour, float], None]


def _legs(pen: Pen, xs: Sequence[float], top: float, length: float, width: float, colour: Colour, phase: float) -> None:
    for i, x in enumerate(xs):
        swing = 0.14 * math.sin(2 * math.pi * (phase + i / 2))
        pen.line([(x, top), (x + swing, top + length)], width, colour)


def cat(pen: Pen, c: Colour, phase: float) -> None:
    dark = mix(c, BLACK, 0.35)
    wag = 0.1 * math.sin(2 * math.pi * phase)
    pen.line([(-0.55, 0.3), (-0.9, 0.0), (-0.85 + wag, -0.6)], 0.16, dark)
    _legs(pen, (-0.5, -0.3, 0.2, 0.4), 0.4, 0.5, 0.16, dark, phase)
    pen.oval(-0.1, 0.3, 0.62, 0.36, c)
    pen.poly([(0.2, -0.5), (0.22, -1.0), (0.5, -0.65)], dark)
    pen.poly([(0.62, -0.65), (0.88, -1.0), (0.92, -0.5)], dark)
    pen.oval(0.55, -0.3, 0.42, 0.4, c)
    pen.eye(0.42, -0.36, 0.1)
    pen.eye(0.72, -0.36, 0.1)
    pen.oval(0.58, -0.14, 0.08, 0.05, (230, 120, 130))


def dog(pen: Pen, c: Colour, phase: float) -> None:
    dark = mix(c, BLACK, 0.45)
    wag = 0.2 * math.sin(4 * math.pi * phase)
    pen.line([(-0.65, 0.1), (-0.95, -0.3 + wag)], 0.14, c)
    _legs(pen, (-0.55, -0.38, 0.18, 0.35), 0.3, 0.62, 0.18, c, phase)
    pen.poly([(-0.75, -0.1), (0.45, -0.15), (0.5, 0.45), (-0.75, 0.45)], c)
    pen.oval(0.45, -0.4, 0.36, 0.34, c)
    pen.oval(0.8, -0.28, 0.26, 0.17, mix(c, WHITE, 0.4))
    pen.oval(1.0, -0.34, 0.09, 0.08, BLACK)
    pen.oval(0.22, -0.25, 0.14, 0.4, dark)
    pen.eye(0.55, -0.5, 0.09)


def rabbit(pen: Pen, c: Colour, phase: float) -> None:
    light = mix(c, WHITE, 0.55)
    bend = 0.08 * math.sin(2 * math.pi * phase)
    pen.oval(-0.72, 0.45, 0.2, 0.2, WHITE)
    pen.oval(-0.15, 0.4, 0.55, 0.5, c)
    pen.oval(-0.2, 0.85, 0.36, 0.14, light)
    pen.oval(0.35, 0.85, 0.2, 0.12, light)
    pen.oval(0.26 + bend, -0.62, 0.13, 0.45, c, 0.1)
    pen.oval(0.56 + bend, -0.62, 0.13, 0.45, c, 0.25)
    pen.oval(0.56 + bend, -0.62, 0.06, 0.32, (240, 170, 180), 0.25)
    pen.oval(0.42, -0.08, 0.34, 0.32, c)
    pen.eye(0.52, -0.14, 0.1)
    pen.oval(0.74, -0.02, 0.06, 0.05, (230, 120, 130))


def bird(pen: Pen, c: Colour, phase: float) -> None:
    flap = math.sin(2 * math.pi * phase)
    pen.poly([(-0.4, 0.0), (-1.0, -0.2), (-1.0, 0.25)], mix(c, BLACK, 0.4))
    pen.oval(0.0, 0.05, 0.55, 0.34, c)
    pen.oval(0.5, -0.22, 0.27, 0.26, c)
    pen.poly([(0.72, -0.3), (1.05, -0.16), (0.72, -0.08)], (245, 165, 30))
    pen.poly([(0.2, 0.0), (-0.3, 0.0), (-0.25, -0.85 * flap - 0.05)], mix(c, BLACK, 0.35))
    pen.line([(-0.05, 0.35), (-0.05, 0.65)], 0.07, (245, 165, 30))
    pen.line([(0.12, 0.35), (0.12, 0.65)], 0.07, (245, 165, 30))
    pen.eye(0.58, -0.28, 0.08)


def fish(pen: Pen, c: Colour, phase: float) -> None:
    dark = mix(c, BLACK, 0.35)
    wave = 0.25 * math.sin(2 * math.pi * phase)
    pen.poly([(-0.45, 0.0), (-1.0, -0.5 + wave), (-0.85, 0.0 + wave / 2), (-1.0, 0.5 + wave)], dark)
    pen.poly([(-0.3, -0.4), (0.1, -0.8), (0.35, -0.4)], dark)
    pen.oval(0.15, 0.0, 0.75, 0.48, c)
    pen.poly([(-0.05, -0.46), (0.1, -0.47), (0.1, 0.47), (-0.05, 0.46)], WHITE)
    pen.poly([(0.1, 0.1), (-0.2, 0.35), (0.15, 0.35)], dark)
    pen.eye(0.6, -0.12, 0.11)


def horse(pen: Pen, c: Colour, phase: float) -> None:
    dark = mix(c, BLACK, 0.55)
    pen.poly([(-0.6, -0.1), (-0.95, 0.0), (-0.9, 0.5), (-0.75, 0.3)], dark)
    _legs(pen, (-0.5, -0.38, 0.2, 0.34), 0.2, 0.75, 0.12, c, phase)
    pen.oval(-0.1, 0.05, 0.58, 0.28, c)
    pen.poly([(0.15, 0.05), (0.45, 0.15), (0.72, -0.65), (0.45, -0.8)], c)
    pen.poly([(0.12, -0.1), (0.4, -0.85), (0.5, -0.8), (0.3, 0.0)], dark)
    pen.oval(0.76, -0.62, 0.3, 0.15, c, 0.5)
    pen.poly([(0.5, -0.78), (0.52, -1.0), (0.64, -0.8)], c)
    pen.eye(0.68, -0.68, 0.07)


def elephant(pen: Pen, c: Colour, phase: float) -> None:
    dark = mix(c, BLACK, 0.3)
    swing = 0.12 * math.sin(2 * math.pi * phase)
    _legs(pen, (-0.6, -0.3, 0.05, 0.3), 0.3, 0.6, 0.24, dark, phase)
    pen.oval(-0.2, 0.0, 0.72, 0.52, c)
    pen.oval(0.52, -0.2, 0.38, 0.38, c)
    pen.line([(0.8, -0.1), (0.95, 0.35), (0.85 + swing, 0.85)], 0.2, c)
    pen.oval(0.3, -0.2, 0.27, 0.4, dark)
    pen.line([(0.72, 0.1), (1.0, 0.15)], 0.09, WHITE)
    pen.eye(0.68, -0.3, 0.07)


def turtle(pen: Pen, c: Colour, phase: float) -> None:
    skin = (120, 170, 80)
    swing = 0.1 * math.sin(2 * math.pi * phase)
    pen.oval(-0.5 + swing, 0.55, 0.2, 0.16, skin)
    pen.oval(0.4 - swing, 0.55, 0.2, 0.16, skin)
    pen.oval(0.8, 0.15, 0.24, 0.2, skin)
    pen.poly([(-0.78 + 1.53 * i / 14, 0.45 - 1.0 * math.sin(math.pi * i / 14)) for i in range(15)], c)
    for x, y in ((-0.35, 0.15), (0.0, -0.2), (0.33, 0.15)):
        pen.oval(x, y, 0.16, 0.16, mix(c, BLACK, 0.4))
    pen.poly([(-0.85, 0.38), (0.78, 0.38), (0.78, 0.52), (-0.85, 0.52)], mix(c, WHITE, 0.45))
    pen.eye(0.86, 0.1, 0.07)


def frog(pen: Pen, c: Colour, phase: float) -> None:
    dark = mix(c, BLACK, 0.3)
    puff = 0.05 * math.sin(2 * math.pi * phase)
    pen.oval(-0.62, 0.45, 0.3, 0.4, dark, 0.5)
    pen.oval(0.62, 0.45, 0.3, 0.4, dark, -0.5)
    pen.oval(0.0, 0.3, 0.62, 0.5 + puff, c)
    pen.oval(0.0, 0.5, 0.4, 0.3 + puff, mix(c, WHITE, 0.6))
    pen.oval(0.0, -0.15, 0.55, 0.35, c)
    for x in (-0.35, 0.35):
        pen.oval(x, -0.5, 0.22, 0.22, c)
        pen.eye(x, -0.5, 0.15)
    pen.line([(-0.35, -0.05), (0.0, 0.05), (0.35, -0.05)], 0.06, BLACK)


def duck(pen: Pen, c: Colour, phase: float) -> None:
    orange = (245, 150, 20)
    bob = 0.06 * math.sin(2 * math.pi * phase)
    pen.poly([(-0.6, 0.1), (-1.0, -0.25), (-0.5, 0.45)], c)
    pen.oval(-0.1, 0.35, 0.65, 0.4, c)
    pen.poly([(0.2, 0.3), (0.5, 0.35), (0.62, -0.4), (0.35, -0.4)], c)
    pen.oval(0.48, -0.5 + bob, 0.28, 0.27, c)
    pen.poly([(0.68, -0.58 + bob), (1.08, -0.42 + bob), (0.68, -0.32 + bob)], orange)
    pen.oval(-0.15, 0.3, 0.35, 0.2, mix(c, BLACK, 0.3), -0.2)
    pen.line([(-0.1, 0.7), (-0.1, 0.92), (0.1, 0.92)], 0.08, orange)
    pen.eye(0.54, -0.56 + bob, 0.08)


def butterfly(pen: Pen, c: Colour, phase: float) -> None:
    fold = 0.6 + 0.4 * math.cos(2 * math.pi * phase)
    light = mix(c, WHITE, 0.5)
    for side in (-1, 1):
        pen.oval(side * 0.5 * fold, -0.38, 0.46 * fold, 0.46, c, side * -0.4)
        pen.oval(side * 0.42 * fold, 0.42, 0.36 * fold, 0.38, mix(c, BLACK, 0.25), side * 0.4)
        pen.oval(side * 0.52 * fold, -0.4, 0.22 * fold, 0.22, light)
        pen.line([(0.0, -0.5), (side * 0.22, -0.95)], 0.05, BLACK)
    pen.oval(0.0, 0.0, 0.1, 0.6, BLACK)


def pig(pen: Pen, c: Colour, phase: float) -> None:
    pink = (240, 150, 160)
    _legs(pen, (-0.5, -0.3, 0.2, 0.4), 0.45, 0.42, 0.18, mix(c, BLACK, 0.3), phase)
    pen.line([(-0.72, 0.1), (-0.9, 0.0), (-0.82, -0.15), (-0.98, -0.25)], 0.07, c)
    pen.oval(-0.1, 0.15, 0.68, 0.5, c)
    pen.poly([(0.3, -0.4), (0.32, -0.72), (0.55, -0.45)], mix(c, BLACK, 0.3))
    pen.poly([(0.62, -0.45), (0.85, -0.68), (0.84, -0.35)], mix(c, BLACK, 0.3))
    pen.oval(0.58, -0.1, 0.4, 0.4, c)
    pen.oval(0.68, 0.05, 0.23, 0.17, pink)
    pen.oval(0.6, 0.05, 0.05, 0.07, BLACK)
    pen.oval(0.77, 0.05, 0.05, 0.07, BLACK)
    pen.eye(0.46, -0.22, 0.08)
    pen.eye(0.76, -0.22, 0.08)


def snail(pen: Pen, c: Colour, phase: float) -> None:
    skin = (205, 175, 120)
    stretch = 0.08 * math.sin(2 * math.pi * phase)
    pen.oval(0.0, 0.68, 0.95 + stretch, 0.18, skin)
    pen.line([(0.6, 0.6), (0.78 + stretch, 0.1)], 0.24, skin)
    pen.line([(0.78 + stretch, 0.1), (0.68 + stretch, -0.25)], 0.07, skin)
    pen.line([(0.84 + stretch, 0.1), (0.98 + stretch, -0.22)], 0.07, skin)
    pen.oval(-0.2, 0.05, 0.58, 0.58, c)
    pen.oval(-0.16, 0.1, 0.42, 0.42, mix(c, WHITE, 0.6))
    pen.oval(-0.18, 0.12, 0.29, 0.29, c)
    pen.oval(-0.15, 0.15, 0.13, 0.13, mix(c, WHITE, 0.6))


def giraffe(pen: Pen, c: Colour, phase: float) -> None:
    dark = mix(c, BLACK, 0.5)
    _legs(pen, (-0.5, -0.36, 0.05, 0.2), 0.35, 0.6, 0.1, c, phase)
    pen.oval(-0.15, 0.25, 0.5, 0.26, c)
    pen.poly([(0.02, 0.2), (0.32, 0.3), (0.6, -0.72), (0.4, -0.78)], c)
    pen.oval(0.62, -0.78, 0.28, 0.13, c, 0.3)
    pen.line([(0.46, -0.8), (0.42, -1.0)], 0.06, dark)
    for x, y in ((-0.4, 0.2), (-0.15, 0.32), (-0.1, 0.12), (0.1, 0.25), (0.26, -0.05), (0.36, -0.35), (0.45, -0.6)):
        pen.oval(x, y, 0.08, 0.08, dark)
    pen.eye(0.58, -0.82, 0.06)


def mouse(pen: Pen, c: Colour, phase: float) -> None:
    pink = (240, 160, 170)
    wave = 0.15 * math.sin(2 * math.pi * phase)
    pen.line([(-0.6, 0.5), (-0.85, 0.3 + wave), (-1.0, 0.6 - wave)], 0.07, pink)
    pen.poly([(-0.72 + 1.6 * i / 14, 0.72 - 0.85 * math.sin(math.pi * (i / 14) ** 0.75)) for i in range(15)], c)
    pen.oval(0.18, -0.35, 0.34, 0.34, c)
    pen.oval(0.18, -0.35, 0.22, 0.22, pink)
    pen.eye(0.55, 0.28, 0.09)
    pen.oval(0.92, 0.66, 0.1, 0.1, BLACK)
    pen.oval(-0.35, 0.75, 0.17, 0.08, pink)
    pen.oval(0.35, 0.75, 0.17, 0.08, pink)


def bee(pen: Pen, c: Colour, phase: float) -> None:
    flap = 0.2 * math.sin(4 * math.pi * phase)
    pen.poly([(-0.65, 0.1), (-1.0, 0.2), (-0.65, 0.32)], BLACK)
    pen.oval(-0.3, -0.5 + flap, 0.26, 0.45, (215, 230, 250), -0.5)
    pen.oval(0.12, -0.5 + flap, 0.26, 0.45, (235, 242, 255), 0.3)
    pen.oval(0.0, 0.2, 0.72, 0.46, c)
    for x, half in ((-0.42, 0.37), (-0.1, 0.45), (0.22, 0.43)):
        pen.poly(
            [(x - 0.08, 0.2 - half), (x + 0.08, 0.2 - half), (x + 0.08, 0.2 + half), (x - 0.08, 0.2 + half)], BLACK
        )
    pen.line([(0.6, -0.1), (0.82, -0.45)], 0.06, BLACK)
    pen.eye(0.52, 0.1, 0.1)


def crab(pen: Pen, c: Colour, phase: float) -> None:
    dark = mix(c, BLACK, 0.3)
    snap = 0.1 * math.sin(2 * math.pi * phase)
    for side in (-1, 1):
        for i in range(3):
            x = 0.35 + 0.2 * i
            pen.line([(side * 0.3, 0.35), (side * x, 0.3 + 0.08 * i), (side * (x + 0.1 + snap), 0.85)], 0.09, dark)
        pen.line([(side * 0.45, 0.2), (side * 0.8, -0.15)], 0.14, dark)
        pen.oval(side * 0.78, -0.45 + snap, 0.22, 0.3, c, side * 0.3)
        pen.poly([(side * 0.78, -0.45 + snap), (side * 0.68, -0.85 + snap), (side * 0.95, -0.85 + snap)], WHITE)
        pen.line([(side * 0.15, 0.1), (side * 0.2, -0.25)], 0.06, dark)
    pen.oval(0.0, 0.3, 0.6, 0.38, c)
    pen.eye(-0.2, -0.28, 0.1)
    pen.eye(0.2, -0.28, 0.1)


def car(pen: Pen, c: Colour, phase: float) -> None:
    pen.poly([(-0.55, 0.0), (-0.35, -0.5), (0.3, -0.5), (0.6, 0.0)], mix(c, BLACK, 0.25))
    pen.poly([(-0.4, -0.02), (-0.27, -0.38), (-0.03, -0.38), (-0.03, -0.02)], (190, 225, 245))
    pen.poly([(0.07, -0.02), (0.07, -0.38), (0.24, -0.38), (0.42, -0.02)], (190, 225, 245))
    pen.poly([(-1.0, 0.0), (0.85, 0.0), (1.0, 0.2), (1.0, 0.5), (-1.0, 0.5)], c)
    pen.oval(0.92, 0.2, 0.08, 0.1, (255, 240, 140))
    for x in (-0.55, 0.55):
        pen.oval(x, 0.52, 0.26, 0.26, BLACK)
        angle = 2 * math.pi * phase
        pen.oval(x, 0.52, 0.12, 0.12, (200, 200, 205))
        pen.line([(x, 0.52), (x + 0.22 * math.cos(angle), 0.52 + 0.22 * math.sin(angle))], 0.06, (200, 200, 205))


def ball(pen: Pen, c: Colour, phase: float) -> None:
    pen.oval(0.0, 0.0, 0.8, 0.8, c)
    for i in range(3):
        start = 2 * math.pi * (phase + i / 3)
        pen.poly(
            [(0.0, 0.0), *((0.8 * math.cos(start + a), 0.8 * math.sin(start + a)) for a in np.linspace(0, 1.05, 8))],
            WHITE,
        )
    pen.oval(0.0, 0.0, 0.16, 0.16, mix(c, BLACK, 0.4))


def house(pen: Pen, c: Colour, phase: float) -> None:
    pen.poly([(-0.7, -0.1), (0.7, -0.1), (0.7, 0.9), (-0.7, 0.9)], c)
    pen.poly([(0.35, -0.9), (0.55, -0.9), (0.55, -0.4), (0.35, -0.4)], (120, 70, 60))
    pen.poly([(-0.95, -0.05), (0.0, -0.85), (0.95, -0.05)], mix(c, BLACK, 0.5))
    pen.poly([(-0.15, 0.35), (0.2, 0.35), (0.2, 0.9), (-0.15, 0.9)], (110, 70, 40))
    glow = mix((190, 225, 245), (255, 235, 120), 0.5 + 0.5 * math.sin(2 * math.pi * phase))
    for x in (-0.42, 0.47):
        pen.poly([(x - 0.14, 0.12), (x + 0.14, 0.12), (x + 0.14, 0.4), (x - 0.14, 0.4)], glow)


def boat(pen: Pen, c: Colour, phase: float) -> None:
    puff = 0.12 * math.sin(2 * math.pi * phase)
    pen.line([(0.0, 0.4), (0.0, -0.95)], 0.08, (110, 75, 45))
    pen.poly([(0.07, -0.9), (0.75 + puff, 0.1), (0.07, 0.2)], WHITE)
    pen.poly([(-0.07, -0.75), (-0.6 + puff, 0.15), (-0.07, 0.2)], mix(c, WHITE, 0.5))
    pen.poly([(-0.95, 0.35), (0.95, 0.35), (0.6, 0.85), (-0.6, 0.85)], c)


def tree(pen: Pen, c: Colour, phase: float) -> None:
    sway = 0.08 * math.sin(2 * math.pi * phase)
    pen.poly([(-0.14, 0.2), (0.14, 0.2), (0.2, 1.0), (-0.2, 1.0)], (115, 75, 45))
    for x, y, r in ((-0.42, 0.05, 0.42), (0.42, 0.05, 0.42), (0.0, -0.45, 0.5)):
        pen.oval(x + sway * (1 - y), y, r, r, c)
    for x, y in ((-0.35, 0.0), (0.3, 0.1), (0.05, -0.5), (-0.2, -0.35), (0.3, -0.3)):
        pen.oval(x + sway * (1 - y), y, 0.1, 0.1, mix(c, BLACK, 0.35))


SHAPES: dict[str, Shape] = {
    shape.__name__: shape
    for shape in (
        *(cat, dog, rabbit, bird, fish, horse, elephant, turtle, frog, duck, butterfly, pig),
        *(snail, giraffe, mouse, bee, crab),
        *(car, ball, house, boat, tree),
    )
}
