"""A seeded generator of small images with shapes and text, and of questions with known answers.

An image is a grid of cells. A cell may hold a coloured shape, a sign with a number or a sign with a word, and one row
may hold a bar chart. There are several families of questions. A question is asked about an image only if it has exactly
one correct answer for that image.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (240, 200, 20),
    "purple": (140, 60, 190),
    "orange": (245, 125, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
WORDS = (
    "bus",
    "cat",
    "cup",
    "dog",
    "egg",
    "fish",
    "gate",
    "hat",
    "ice",
    "jam",
    "key",
    "lamp",
    "milk",
    "nest",
    "oven",
    "park",
    "road",
    "shop",
    "taxi",
    "west",
)
MAX_BAR_VALUE = 5
_INK = (30, 30, 36)


@dataclass(frozen=True)
class WorldSpec:
    """Parameters of the images."""

    image_size: int = 112
    """Width and height in pixels."""
    num_rows: int = 2
    num_cols: int = 2
    difficulty: float = 0.5
    """At 0, every shape is centred and has its full size and colour. At 1, shapes are moved, shrunk and darkened as far
    as possible."""
    chart_rate: float = 0.45
    """Share of images in which one row is a bar chart."""
    ground_tint: int = 48
    """How much the background's red (0 to 255) decreases from left to right, and its blue from top to bottom.

    The tint shows absolute positions to a model whose position encoding is relative.
    """


@dataclass(frozen=True)
class Shape:
    colour: str
    shape: str


@dataclass(frozen=True)
class NumberSign:
    value: int


@dataclass(frozen=True)
class WordSign:
    text: str


@dataclass(frozen=True)
class Bar:
    colour: str
    value: int


Item = Shape | NumberSign | WordSign


@dataclass(frozen=True)
class Scene:
    """The content of an image: items by cell (row, column), and the bars of its chart from left to right."""

    spec: WorldSpec
    items: dict[tuple[int, int], Item]
    bars: tuple[Bar, ...]
    chart_row: int | None
    paint_seed: int

    def shapes(self) -> list[tuple[str, Shape]]:
        return [(self.place(cell), item) for cell, item in self.items.items() if isinstance(item, Shape)]

    def place(self, cell: tuple[int, int]) -> str:
        """The name of a cell, such as "top left"."""
        rows = _axis_names(self.spec.num_rows, "top", "bottom", "row")
        cols = _axis_names(self.spec.num_cols, "left", "right", "column")
        return f"{rows[cell[0]]} {cols[cell[1]]}"


@dataclass(frozen=True)
class Question:
    """A question with its only correct answer."""

    family: str
    question: str
    answer: str


def _axis_names(count: int, first: str, last: str, unit: str) -> list[str]:
    if count == 1:
        return ["middle"]
    middle = ["middle"] if count == 3 else [f"{unit} {i}" for i in range(2, count)]
    return [first, *middle, last]


def sample_scene(spec: WorldSpec, rng: random.Random) -> Scene:
    """Draw a scene at random, with at least one item or a chart."""
    chart_row = rng.randrange(spec.num_rows) if rng.random() < spec.chart_rate else None
    bars: tuple[Bar, ...] = ()
    if chart_row is not None:
        colours = rng.sample(sorted(COLOURS), 3)
        values = rng.sample(range(1, MAX_BAR_VALUE + 1), 3)
        bars = tuple(Bar(c, v) for c, v in zip(colours, values, strict=True))
    cells = [(r, c) for r in range(spec.num_rows) for c in range(spec.num_cols) if r != chart_row]
    items: dict[tuple[int, int], Item] = {}
    signs: list[Item] = [NumberSign(rng.randint(10, 99)), WordSign(rng.choice(WORDS))]
    rng.shuffle(signs)
    for cell in cells:
        draw = rng.random()
        if draw < 0.62:
            items[cell] = Shape(rng.choice(sorted(COLOURS)), rng.choice(SHAPES))
        elif draw < 0.88 and signs:
            items[cell] = signs.pop()
    if not items and not bars:
        items[rng.choice(cells)] = Shape(rng.choice(sorted(COLOURS)), rng.choice(SHAPES))
    return Scene(spec, items, bars, chart_row, rng.getrandbits(32))


def describe(scene: Scene) -> str:
    """Describe the whole scene in one line, cell by cell. The bundled models are trained on such descriptions."""
    parts = []
    if scene.chart_row is not None:
        row = scene.place((scene.chart_row, 0)).split()[0]
        parts.append(f"{row} bars " + " ".join(f"{b.colour} {b.value}" for b in scene.bars))
    for cell, item in sorted(scene.items.items()):
        match item:
            case Shape(colour, shape):
                text = f"{colour} {shape}"
            case NumberSign(value):
                text = f"number {value}"
            case WordSign(word):
                text = f"word {word}"
        parts.append(f"{scene.place(cell)} {text}")
    return ", ".join(parts)


# --- questions -------------------------------------------------------------------------------------------------------


def _unique(values: list[str]) -> list[str]:
    return [v for v in dict.fromkeys(values) if values.count(v) == 1]


def _colour(scene: Scene) -> Iterator[tuple[str, str]]:
    shapes = [s for _, s in scene.shapes()]
    for kind in _unique([s.shape for s in shapes]):
        yield f"What colour is the {kind}?", next(s.colour for s in shapes if s.shape == kind)


def _shape(scene: Scene) -> Iterator[tuple[str, str]]:
    shapes = [s for _, s in scene.shapes()]
    for colour in _unique([s.colour for s in shapes]):
        yield f"What shape is the {colour} object?", next(s.shape for s in shapes if s.colour == colour)


def _count(scene: Scene) -> Iterator[tuple[str, str]]:
    shapes = [s for _, s in scene.shapes()]
    yield "How many objects are there?", str(len(shapes))
    for kind in dict.fromkeys(s.shape for s in shapes):
        yield (
            f"How many {kind}s are there?" if kind != "cross" else "How many crosses are there?",
            str(sum(s.shape == kind for s in shapes)),
        )


def _position(scene: Scene) -> Iterator[tuple[str, str]]:
    names = [f"{s.colour} {s.shape}" for _, s in scene.shapes()]
    for name in _unique(names):
        yield f"Where is the {name}?", next(p for p, s in scene.shapes() if f"{s.colour} {s.shape}" == name)


def _place(scene: Scene) -> Iterator[tuple[str, str]]:
    for place, shape in scene.shapes():
        yield f"What colour is the object at the {place}?", shape.colour


def _number(scene: Scene) -> Iterator[tuple[str, str]]:
    for item in scene.items.values():
        if isinstance(item, NumberSign):
            yield "What number is written on the sign?", str(item.value)


def _word(scene: Scene) -> Iterator[tuple[str, str]]:
    for item in scene.items.values():
        if isinstance(item, WordSign):
            yield "What word is written on the sign?", item.text


def _chart(scene: Scene) -> Iterator[tuple[str, str]]:
    for a, b in combinations(scene.bars, 2):
        yield f"Which bar is taller, {a.colour} or {b.colour}?", max(a, b, key=lambda bar: bar.value).colour
    if scene.bars:
        yield "Which bar is the tallest?", max(scene.bars, key=lambda bar: bar.value).colour
        yield "Which bar is the shortest?", min(scene.bars, key=lambda bar: bar.value).colour


FAMILIES: dict[str, Callable[[Scene], Iterator[tuple[str, str]]]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "position": _position,
    "place": _place,
    "number": _number,
    "word": _word,
    "chart": _chart,
}


def questions(scene: Scene) -> list[Question]:
    """Return all questions that have exactly one correct answer for the scene."""
    return [Question(name, q, a) for name, ask in FAMILIES.items() for q, a in ask(scene)]


def sample_question(scene: Scene, rng: random.Random, weights: dict[str, float] | None = None) -> Question | None:
    """Draw a question about a scene: first a family, at random by weight, and then one of the family's questions.

    Args:
        scene: The scene.
        rng: The source of randomness.
        weights: The weights of families. A family that is not named has weight 1.

    Returns:
        The question, or None if no family with a weight above 0 has a question about the scene.
    """
    options = {name: list(ask(scene)) for name, ask in FAMILIES.items()}
    names = [n for n, pairs in options.items() if pairs and (weights or {}).get(n, 1.0) > 0]
    if not names:
        return None
    name = rng.choices(names, [(weights or {}).get(n, 1.0) for n in names])[0]
    question, answer = rng.choice(options[name])
    return Question(name, question, answer)


# --- painting --------------------------------------------------------------------------------------------------------


def paint(scene: Scene) -> Image.Image:
    """Paint the scene as an RGB image of `image_size` x `image_size`. The same scene gives the same pixels."""
    spec, rng = scene.spec, random.Random(scene.paint_seed)
    image = Image.fromarray(_ground(spec, rng.randint(255 - int(36 * spec.difficulty), 255)))
    draw = ImageDraw.Draw(image)
    height, width = spec.image_size / spec.num_rows, spec.image_size / spec.num_cols
    for (row, col), item in scene.items.items():
        _paint_item(draw, item, (col * width, row * height, width, height), spec.difficulty, rng)
    if scene.chart_row is not None:
        _paint_chart(draw, scene.bars, scene.chart_row * height, spec.image_size, height)
    return image


def _ground(spec: WorldSpec, brightness: int) -> NDArray[np.uint8]:
    side = spec.image_size
    loss = spec.ground_tint * np.arange(side) / max(1, side - 1)
    ground = np.full((side, side, 3), float(brightness))
    ground[:, :, 0] -= loss
    ground[:, :, 2] -= loss[:, None]
    return ground.round().astype(np.uint8)


def _paint_item(
    draw: ImageDraw.ImageDraw,
    item: Item,
    box: tuple[float, float, float, float],
    difficulty: float,
    rng: random.Random,
) -> None:
    left, top, width, height = box
    radius = min(width, height) * 0.42 * (1 - rng.random() * 0.45 * difficulty)
    slack_x, slack_y = (width / 2 - radius) * difficulty, (height / 2 - radius) * difficulty
    x, y = left + width / 2 + rng.uniform(-slack_x, slack_x), top + height / 2 + rng.uniform(-slack_y, slack_y)
    match item:
        case Shape(colour, shape):
            shade = 1 - 0.25 * difficulty * rng.random()
            _paint_shape(draw, shape, x, y, radius, tuple(int(v * shade) for v in COLOURS[colour]))
        case NumberSign(value):
            _paint_sign(draw, str(value), box, 0.62, (255, 255, 255), difficulty, rng)
        case WordSign(text):
            _paint_sign(draw, text, box, 0.36, (222, 232, 244), difficulty, rng)


def _paint_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: tuple[int, ...]) -> None:
    from math import cos, pi, sin

    match shape:
        case "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        case "square":
            draw.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=fill)
        case "triangle":
            draw.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=fill)
        case "star":
            radii = [r if i % 2 == 0 else 0.42 * r for i in range(10)]
            angles = [-pi / 2 + i * pi / 5 for i in range(10)]
            draw.polygon([(x + a * cos(t), y + a * sin(t)) for a, t in zip(radii, angles, strict=True)], fill=fill)
        case "cross":
            draw.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=fill)
            draw.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=fill)


def _paint_sign(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: tuple[float, float, float, float],
    scale: float,
    fill: tuple[int, int, int],
    difficulty: float,
    rng: random.Random,
) -> None:
    left, top, width, height = box
    margin = 0.06 * min(width, height)
    draw.rectangle(
        (left + margin, top + 2 * margin, left + width - margin, top + height - 2 * margin),
        fill=fill,
        outline=_INK,
        width=max(1, int(min(width, height) / 40)),
    )
    font = ImageFont.load_default(min(width, height) * scale)
    shift = 0.04 * min(width, height) * difficulty
    at = (left + width / 2 + rng.uniform(-shift, shift), top + height / 2 + rng.uniform(-shift, shift))
    draw.text(at, text, fill=_INK, font=font, anchor="mm")


def _paint_chart(draw: ImageDraw.ImageDraw, bars: tuple[Bar, ...], top: float, width: float, height: float) -> None:
    base, slot = top + 0.94 * height, width / (len(bars) + 0.5)
    for i, bar in enumerate(bars):
        left = (i + 0.5) * slot
        bar_height = 0.86 * height * bar.value / MAX_BAR_VALUE
        draw.rectangle((left, base - bar_height, left + 0.55 * slot, base), fill=COLOURS[bar.colour])
    draw.line((0.03 * width, base, 0.97 * width, base), fill=_INK, width=max(1, int(height / 40)))
