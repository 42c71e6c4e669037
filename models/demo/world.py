"""The demo world: flat drawings of objects on a 3 x 3 grid, and signs with words. Knows nothing of dialogue or models.

Images are drawn at 96 x 96, the size the model's vision tower reads, so that preprocessing does not resample them. A
grid cell is 32 px and covers 2 x 2 patches of the tower; a letter of a sign is one patch wide and two patches high.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

SIZE = 96
GRID = 3
CELL = SIZE // GRID
LETTERS_PER_LINE = 6

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 150, 60),
    "blue": (40, 90, 215),
    "yellow": (245, 215, 40),
    "orange": (245, 135, 25),
    "purple": (140, 60, 175),
    "black": (45, 45, 48),
    "white": (252, 252, 252),
}

# Shapes in a unit square: (form, coordinates, fill), later ones on top. Fills: c = the object's colour, d = a darker
# shade of it, k = ink, w = white, g = brown grey. A line's width follows its letter: "k7" = ink, 7 hundredths.
Shape = tuple[str, tuple[float, ...], str]

EVERYDAY: dict[str, tuple[Shape, ...]] = {
    "apple": (
        ("ellipse", (0.1, 0.25, 0.6, 0.95), "c"),
        ("ellipse", (0.4, 0.25, 0.9, 0.95), "c"),
        ("line", (0.5, 0.3, 0.58, 0.05), "k7"),
    ),
    "ball": (
        ("ellipse", (0.08, 0.08, 0.92, 0.92), "c"),
        ("line", (0.1, 0.5, 0.9, 0.5), "k6"),
        ("line", (0.5, 0.1, 0.5, 0.9), "k6"),
    ),
    "cup": (
        ("ellipse", (0.55, 0.3, 0.95, 0.75), "d"),
        ("ellipse", (0.65, 0.4, 0.85, 0.65), "w"),
        ("poly", (0.1, 0.15, 0.75, 0.15, 0.68, 0.92, 0.17, 0.92), "c"),
    ),
    "book": (
        ("poly", (0.5, 0.25, 0.95, 0.12, 0.95, 0.82, 0.5, 0.95), "c"),
        ("poly", (0.5, 0.25, 0.05, 0.12, 0.05, 0.82, 0.5, 0.95), "c"),
        ("line", (0.5, 0.25, 0.5, 0.95), "k6"),
    ),
    "key": (
        ("poly", (0.4, 0.43, 0.97, 0.43, 0.97, 0.75, 0.86, 0.75, 0.86, 0.57, 0.4, 0.57), "c"),
        ("ellipse", (0.03, 0.25, 0.5, 0.75), "c"),
        ("ellipse", (0.16, 0.4, 0.36, 0.6), "w"),
    ),
    "tree": (
        ("poly", (0.42, 0.7, 0.58, 0.7, 0.58, 0.98, 0.42, 0.98), "g"),
        ("poly", (0.5, 0.02, 0.9, 0.75, 0.1, 0.75), "c"),
    ),
    "fish": (
        ("poly", (0.6, 0.5, 0.97, 0.2, 0.97, 0.8), "d"),
        ("ellipse", (0.03, 0.25, 0.75, 0.75), "c"),
        ("ellipse", (0.15, 0.38, 0.27, 0.5), "w"),
    ),
    "flower": (
        ("line", (0.5, 0.5, 0.5, 0.98), "k7"),
        ("ellipse", (0.33, 0.0, 0.67, 0.35), "c"),
        ("ellipse", (0.33, 0.4, 0.67, 0.75), "c"),
        ("ellipse", (0.1, 0.2, 0.45, 0.55), "c"),
        ("ellipse", (0.55, 0.2, 0.9, 0.55), "c"),
        ("ellipse", (0.38, 0.26, 0.62, 0.5), "w"),
    ),
    "hat": (
        ("poly", (0.27, 0.15, 0.73, 0.15, 0.76, 0.75, 0.24, 0.75), "c"),
        ("poly", (0.03, 0.7, 0.97, 0.7, 0.97, 0.85, 0.03, 0.85), "d"),
    ),
    "house": (
        ("poly", (0.15, 0.45, 0.85, 0.45, 0.85, 0.95, 0.15, 0.95), "c"),
        ("poly", (0.5, 0.05, 0.98, 0.48, 0.02, 0.48), "d"),
        ("poly", (0.42, 0.62, 0.6, 0.62, 0.6, 0.95, 0.42, 0.95), "w"),
    ),
    "star": (
        (
            "poly",
            (
                0.5,
                0.02,
                0.62,
                0.36,
                0.98,
                0.37,
                0.69,
                0.59,
                0.79,
                0.95,
                0.5,
                0.74,
                0.21,
                0.95,
                0.31,
                0.59,
                0.02,
                0.37,
                0.38,
                0.36,
            ),
            "c",
        ),
    ),
    "car": (
        ("poly", (0.02, 0.48, 0.22, 0.45, 0.34, 0.2, 0.7, 0.2, 0.82, 0.45, 0.98, 0.5, 0.98, 0.74, 0.02, 0.74), "c"),
        ("ellipse", (0.13, 0.6, 0.38, 0.88), "k"),
        ("ellipse", (0.62, 0.6, 0.87, 0.88), "k"),
        ("poly", (0.38, 0.27, 0.66, 0.27, 0.72, 0.44, 0.31, 0.44), "w"),
    ),
    "boat": (
        ("poly", (0.03, 0.62, 0.97, 0.62, 0.78, 0.95, 0.22, 0.95), "c"),
        ("line", (0.48, 0.05, 0.48, 0.62), "k7"),
        ("poly", (0.54, 0.05, 0.9, 0.52, 0.54, 0.52), "w"),
    ),
    "clock": (
        ("ellipse", (0.05, 0.05, 0.95, 0.95), "c"),
        ("ellipse", (0.2, 0.2, 0.8, 0.8), "w"),
        ("line", (0.5, 0.5, 0.5, 0.26), "k7"),
        ("line", (0.5, 0.5, 0.68, 0.5), "k7"),
    ),
    "chair": (
        ("poly", (0.2, 0.03, 0.34, 0.03, 0.34, 0.97, 0.2, 0.97), "c"),
        ("poly", (0.2, 0.5, 0.82, 0.5, 0.82, 0.64, 0.2, 0.64), "c"),
        ("poly", (0.7, 0.5, 0.82, 0.5, 0.82, 0.97, 0.7, 0.97), "c"),
    ),
    "lamp": (
        ("poly", (0.3, 0.05, 0.7, 0.05, 0.95, 0.5, 0.05, 0.5), "c"),
        ("line", (0.5, 0.5, 0.5, 0.9), "k8"),
        ("poly", (0.25, 0.86, 0.75, 0.86, 0.75, 0.97, 0.25, 0.97), "d"),
    ),
}

TOOLS: dict[str, tuple[Shape, ...]] = {
    "knife": (
        ("poly", (0.02, 0.3, 0.62, 0.3, 0.62, 0.58, 0.25, 0.58), "w"),
        ("poly", (0.62, 0.3, 0.98, 0.3, 0.98, 0.5, 0.62, 0.5), "c"),
    ),
    "hammer": (
        ("poly", (0.43, 0.3, 0.57, 0.3, 0.57, 0.98, 0.43, 0.98), "g"),
        ("poly", (0.08, 0.05, 0.85, 0.05, 0.95, 0.2, 0.85, 0.35, 0.08, 0.35), "c"),
    ),
    "rope": (
        ("ellipse", (0.05, 0.05, 0.8, 0.8), "c"),
        ("ellipse", (0.18, 0.18, 0.67, 0.67), "d"),
        ("ellipse", (0.3, 0.3, 0.55, 0.55), "w"),
        ("poly", (0.6, 0.7, 0.72, 0.62, 0.98, 0.92, 0.88, 0.98), "c"),
    ),
    "match": (
        ("poly", (0.44, 0.3, 0.56, 0.3, 0.56, 0.98, 0.44, 0.98), "w"),
        ("ellipse", (0.34, 0.03, 0.66, 0.4), "c"),
    ),
    "axe": (
        ("poly", (0.3, 0.03, 0.42, 0.03, 0.42, 0.98, 0.3, 0.98), "g"),
        ("poly", (0.36, 0.12, 0.72, 0.03, 0.92, 0.3, 0.72, 0.56, 0.36, 0.44), "c"),
    ),
    "saw": (
        (
            "poly",
            (
                0.3,
                0.35,
                0.98,
                0.35,
                0.98,
                0.6,
                0.9,
                0.5,
                0.82,
                0.64,
                0.74,
                0.5,
                0.66,
                0.64,
                0.58,
                0.5,
                0.5,
                0.64,
                0.42,
                0.5,
                0.3,
                0.64,
            ),
            "w",
        ),
        ("poly", (0.02, 0.22, 0.34, 0.22, 0.34, 0.75, 0.02, 0.75), "c"),
    ),
    "shovel": (
        ("poly", (0.32, 0.02, 0.68, 0.02, 0.68, 0.13, 0.32, 0.13), "g"),
        ("poly", (0.45, 0.1, 0.55, 0.1, 0.55, 0.6, 0.45, 0.6), "g"),
        ("poly", (0.28, 0.52, 0.72, 0.52, 0.72, 0.8, 0.5, 0.98, 0.28, 0.8), "c"),
    ),
    "chain": (
        ("ellipse", (0.0, 0.3, 0.42, 0.7), "c"),
        ("ellipse", (0.11, 0.41, 0.31, 0.59), "w"),
        ("ellipse", (0.3, 0.3, 0.72, 0.7), "d"),
        ("ellipse", (0.41, 0.41, 0.61, 0.59), "w"),
        ("ellipse", (0.58, 0.3, 1.0, 0.7), "c"),
        ("ellipse", (0.69, 0.41, 0.89, 0.59), "w"),
    ),
}

DANGEROUS: dict[str, tuple[Shape, ...]] = {
    "bomb": (
        ("line", (0.55, 0.35, 0.82, 0.1), "k7"),
        ("poly", (0.82, 0.0, 0.87, 0.09, 0.98, 0.1, 0.89, 0.17, 0.92, 0.28, 0.82, 0.21, 0.72, 0.26, 0.76, 0.14), "w"),
        ("ellipse", (0.05, 0.25, 0.78, 0.97), "c"),
        ("ellipse", (0.2, 0.38, 0.36, 0.54), "w"),
    ),
    "gun": (
        (
            "poly",
            (
                0.03,
                0.2,
                0.97,
                0.2,
                0.97,
                0.44,
                0.5,
                0.44,
                0.44,
                0.58,
                0.36,
                0.58,
                0.3,
                0.92,
                0.06,
                0.92,
                0.12,
                0.44,
                0.03,
                0.4,
            ),
            "c",
        ),
        ("line", (0.44, 0.58, 0.55, 0.44), "k5"),
    ),
    "grenade": (
        ("poly", (0.4, 0.05, 0.62, 0.05, 0.62, 0.3, 0.4, 0.3), "g"),
        ("poly", (0.6, 0.05, 0.9, 0.3, 0.9, 0.6, 0.82, 0.6, 0.8, 0.33, 0.6, 0.17), "g"),
        ("ellipse", (0.15, 0.25, 0.8, 0.97), "c"),
        ("line", (0.18, 0.5, 0.78, 0.5), "k5"),
        ("line", (0.18, 0.72, 0.78, 0.72), "k5"),
        ("line", (0.38, 0.28, 0.38, 0.94), "k5"),
        ("line", (0.58, 0.28, 0.58, 0.94), "k5"),
    ),
    "missile": (
        ("poly", (0.36, 0.7, 0.1, 0.95, 0.36, 0.92), "d"),
        ("poly", (0.64, 0.7, 0.9, 0.95, 0.64, 0.92), "d"),
        ("poly", (0.35, 0.3, 0.5, 0.02, 0.65, 0.3, 0.65, 0.93, 0.35, 0.93), "c"),
        ("poly", (0.35, 0.45, 0.65, 0.45, 0.65, 0.55, 0.35, 0.55), "w"),
    ),
    "poison bottle": (
        ("poly", (0.4, 0.02, 0.6, 0.02, 0.6, 0.3, 0.4, 0.3), "g"),
        ("poly", (0.4, 0.25, 0.6, 0.25, 0.85, 0.5, 0.85, 0.97, 0.15, 0.97, 0.15, 0.5), "c"),
        ("ellipse", (0.3, 0.48, 0.7, 0.82), "w"),
        ("line", (0.34, 0.54, 0.66, 0.78), "k7"),
        ("line", (0.66, 0.54, 0.34, 0.78), "k7"),
    ),
    "dynamite stick": (
        ("line", (0.5, 0.3, 0.62, 0.12, 0.82, 0.05), "k6"),
        ("poly", (0.12, 0.3, 0.36, 0.3, 0.36, 0.97, 0.12, 0.97), "c"),
        ("poly", (0.38, 0.3, 0.62, 0.3, 0.62, 0.97, 0.38, 0.97), "c"),
        ("poly", (0.64, 0.3, 0.88, 0.3, 0.88, 0.97, 0.64, 0.97), "c"),
        ("poly", (0.08, 0.52, 0.92, 0.52, 0.92, 0.66, 0.08, 0.66), "w"),
    ),
}

OBJECTS: dict[str, tuple[Shape, ...]] = EVERYDAY | TOOLS | DANGEROUS

POSITIONS: tuple[str, ...] = tuple(
    f"at the {row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right")
)


@dataclass(frozen=True)
class Thing:
    """One object in a grid cell (0..8 in reading order)."""

    name: str
    colour: str
    cell: int


@dataclass(frozen=True)
class Group:
    """Objects of one name and colour in a scene."""

    name: str
    colour: str
    cells: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.cells)


@dataclass(frozen=True)
class Scene:
    """Up to five objects; no two groups share a name."""

    groups: tuple[Group, ...]  # ordered by their first cell

    def group(self, name: str) -> Group | None:
        """The group of that name, if the scene has one."""
        return next((g for g in self.groups if g.name == name), None)

    def at(self, cell: int) -> Group | None:
        """The group that owns a cell, if any."""
        return next((g for g in self.groups if cell in g.cells), None)


@dataclass(frozen=True)
class Sign:
    """One to three words, one a line; `lines[i]` is "" where a line is empty."""

    lines: tuple[str, str, str]

    @property
    def text(self) -> str:
        """The words as read aloud."""
        return " ".join(line for line in self.lines if line)


Picture = Scene | Sign


def stream(*words: object) -> random.Random:
    """A random stream that is a function of `words`."""
    return random.Random(" ".join(str(word) for word in words))  # noqa: S311  (worlds, not secrets)


def make_scene(rng: random.Random, groups: list[tuple[str, str, int]]) -> Scene:
    """Places (name, colour, count) groups in random free cells."""
    cells = rng.sample(range(GRID * GRID), sum(count for _, _, count in groups))
    made = []
    for name, colour, count in groups:
        made.append(Group(name, colour, tuple(sorted(cells[:count]))))
        cells = cells[count:]
    return Scene(tuple(sorted(made, key=lambda g: g.cells[0])))


def make_sign(rng: random.Random, text: str) -> Sign:
    """Puts one to three words on consecutive lines, from a random first line where there is room."""
    words = text.split()
    assert 1 <= len(words) <= 3, f"a sign holds 1 to 3 words, not {text!r}"
    assert all(len(w) <= LETTERS_PER_LINE for w in words), f"a word on a sign has at most 6 letters: {text!r}"
    start = rng.randint(0, 3 - len(words))
    lines = [""] * start + words + [""] * (3 - len(words) - start)
    return Sign((lines[0], lines[1], lines[2]))


def first_column(word: str) -> int:
    """The letter column in which a word on a sign starts: words stand in the middle of their line."""
    return (LETTERS_PER_LINE - len(word)) // 2


def _shade(colour: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    red, green, blue = (int(c * factor) for c in colour)
    return red, green, blue


@lru_cache(maxsize=20_000)
def _sprite(name: str, colour: str, side: int) -> Image.Image:
    """One object as RGBA, drawn four times too large and reduced so that its edges are smooth."""
    scale = side * 4
    image = Image.new("RGBA", (scale, scale), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    main = COLOURS[colour]
    ink = (20, 20, 22)
    fills = {"c": main, "d": _shade(main, 0.72), "k": ink, "w": (252, 252, 252), "g": (150, 125, 100)}
    outline = max(2, scale // 32)
    for form, unit, fill in OBJECTS[name]:
        points = [u * (scale - 1) for u in unit]
        if form == "line":
            draw.line(points, fill=fills[fill[0]], width=int(scale * int(fill[1:]) / 100), joint="curve")
        elif form == "ellipse":
            draw.ellipse(points, fill=fills[fill], outline=ink, width=outline)
        else:
            draw.polygon(points, fill=fills[fill], outline=ink, width=outline)
    return image.resize((side, side), Image.Resampling.LANCZOS)


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # the font inside Pillow: the same on every machine


def _background(rng: random.Random) -> tuple[int, int, int]:
    base = rng.randint(178, 232)
    red, green, blue = (min(255, base + rng.randint(-8, 8)) for _ in range(3))
    return red, green, blue


def _draw_scene(scene: Scene, rng: random.Random) -> Image.Image:
    image = Image.new("RGB", (SIZE, SIZE), _background(rng))
    for group in scene.groups:
        for cell in group.cells:
            side = rng.randint(25, 31)
            x = cell % GRID * CELL + (CELL - side) // 2 + rng.randint(-2, 2)
            y = cell // GRID * CELL + (CELL - side) // 2 + rng.randint(-2, 2)
            sprite = _sprite(group.name, group.colour, side)
            image.paste(sprite, (x, y), sprite)
    return image


def _draw_sign(sign: Sign, rng: random.Random) -> Image.Image:
    image = Image.new("RGB", (SIZE, SIZE), _background(rng))
    draw = ImageDraw.Draw(image)
    board = rng.choice([(250, 250, 245), (252, 240, 170), (200, 225, 250), (205, 240, 205)])
    draw.rounded_rectangle((1, 1, SIZE - 2, SIZE - 2), radius=5, fill=board, outline=(60, 60, 60), width=1)
    font = _font(rng.randint(19, 22))
    ink = rng.choice([(15, 15, 20), (120, 15, 20), (15, 30, 120)])
    dx, dy = rng.randint(-1, 1), rng.randint(-2, 2)
    for row, word in enumerate(sign.lines):
        for column, letter in enumerate(word, start=first_column(word)):
            centre = (column * 16 + 8 + dx, row * CELL + CELL // 2 + dy)
            draw.text(centre, letter, fill=ink, font=font, anchor="mm", stroke_width=0)
    return image


def draw_picture(picture: Picture, rng: random.Random) -> Image.Image:
    """Draws a scene or sign as RGB, 96 x 96, with jittered places, sizes and shades."""
    return _draw_sign(picture, rng) if isinstance(picture, Sign) else _draw_scene(picture, rng)
