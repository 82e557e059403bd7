"""More things for the 128 px world, drawn in the style of `things`: in unit coordinates, y downward."""

from collections.abc import Callable

from dreambooth.starter.things import CLASSES, DARK, LIGHT, LIVE, NECK_Y, Canvas, Colour

BEAK: Colour = (240, 138, 40)
WOOD: Colour = (150, 98, 54)


def _eyes(canvas: Canvas, x: float, y: float, spread: float) -> None:
    for side in (-1, 1):
        canvas.dot(x + side * spread, y, 0.048, 0.052, LIGHT)
        canvas.dot(x + side * spread, y + 0.008, 0.026, 0.030, DARK)


def rabbit(canvas: Canvas) -> None:
    """A sitting rabbit with long upright ears."""
    canvas.oval(0.50, 0.74, 0.21, 0.22)
    canvas.oval(0.50, 0.44, 0.18, 0.16)
    canvas.oval(0.40, 0.18, 0.065, 0.18)
    canvas.oval(0.60, 0.18, 0.065, 0.18)
    canvas.oval(0.72, 0.84, 0.08, 0.08)
    canvas.dot(0.40, 0.18, 0.030, 0.12, (244, 190, 196))
    canvas.dot(0.60, 0.18, 0.030, 0.12, (244, 190, 196))
    _eyes(canvas, 0.50, 0.41, 0.075)
    canvas.patch((236, 130, 140), (0.47, 0.485), (0.53, 0.485), (0.50, 0.52))


def penguin(canvas: Canvas) -> None:
    """A penguin with a pale front and short wings."""
    canvas.oval(0.50, 0.60, 0.25, 0.34)
    canvas.oval(0.50, 0.25, 0.17, 0.17)
    canvas.shape((0.28, 0.42), (0.12, 0.70), (0.18, 0.76), (0.32, 0.62))
    canvas.shape((0.72, 0.42), (0.88, 0.70), (0.82, 0.76), (0.68, 0.62))
    canvas.dot(0.50, 0.64, 0.17, 0.25, LIGHT)
    canvas.patch(BEAK, (0.44, 0.30), (0.56, 0.30), (0.50, 0.39))
    canvas.dot(0.40, 0.95, 0.09, 0.035, BEAK)
    canvas.dot(0.60, 0.95, 0.09, 0.035, BEAK)
    _eyes(canvas, 0.50, 0.22, 0.065)


def bird(canvas: Canvas) -> None:
    """A bird in profile on two thin legs."""
    canvas.oval(0.46, 0.56, 0.28, 0.22)
    canvas.oval(0.68, 0.34, 0.16, 0.15)
    canvas.shape((0.24, 0.50), (0.02, 0.38), (0.08, 0.58), (0.26, 0.66))
    canvas.patch(BEAK, (0.82, 0.30), (0.98, 0.36), (0.82, 0.42))
    canvas.patch(BEAK, (0.40, 0.76), (0.43, 0.76), (0.43, 0.94), (0.40, 0.94))
    canvas.patch(BEAK, (0.53, 0.76), (0.56, 0.76), (0.56, 0.94), (0.53, 0.94))
    canvas.dot(0.72, 0.31, 0.040, 0.044, LIGHT)
    canvas.dot(0.73, 0.31, 0.022, 0.026, DARK)


def fish(canvas: Canvas) -> None:
    """A fish with tail and fins."""
    canvas.oval(0.54, 0.52, 0.32, 0.22)
    canvas.shape((0.28, 0.52), (0.04, 0.30), (0.08, 0.52), (0.04, 0.76))
    canvas.shape((0.42, 0.36), (0.56, 0.16), (0.68, 0.36))
    canvas.shape((0.46, 0.70), (0.54, 0.86), (0.62, 0.70))
    canvas.dot(0.72, 0.45, 0.052, 0.052, LIGHT)
    canvas.dot(0.73, 0.45, 0.026, 0.028, DARK)
    canvas.patch(DARK, (0.76, 0.60), (0.85, 0.56), (0.85, 0.59), (0.77, 0.63))


def mug(canvas: Canvas) -> None:
    """A mug with a handle, full of coffee."""
    canvas.oval(0.76, 0.54, 0.19, 0.19)
    canvas.hole(0.76, 0.54, 0.10, 0.11)
    canvas.shape((0.16, 0.22), (0.70, 0.22), (0.66, 0.88), (0.20, 0.88))
    canvas.dot(0.43, 0.22, 0.27, 0.075, LIGHT)
    canvas.dot(0.43, 0.225, 0.225, 0.052, (92, 58, 38))


def lamp(canvas: Canvas) -> None:
    """A table lamp: a coloured shade on a dark stand."""
    canvas.shape((0.34, 0.08), (0.66, 0.08), (0.84, 0.50), (0.16, 0.50))
    canvas.patch((255, 236, 150), (0.18, 0.49), (0.82, 0.49), (0.80, 0.55), (0.20, 0.55))
    canvas.patch(DARK, (0.47, 0.55), (0.53, 0.55), (0.53, 0.88), (0.47, 0.88))
    canvas.dot(0.50, 0.90, 0.20, 0.05, DARK)


def umbrella(canvas: Canvas) -> None:
    """An open umbrella with a hooked handle."""
    canvas.shape((0.03, 0.50), (0.10, 0.30), (0.28, 0.14), (0.50, 0.08), (0.72, 0.14), (0.90, 0.30), (0.97, 0.50),
                 (0.82, 0.45), (0.66, 0.50), (0.50, 0.45), (0.34, 0.50), (0.18, 0.45))  # fmt: skip
    canvas.patch(WOOD, (0.48, 0.46), (0.52, 0.46), (0.52, 0.90), (0.48, 0.90))
    canvas.patch(WOOD, (0.48, 0.88), (0.64, 0.88), (0.64, 0.80), (0.68, 0.80), (0.68, 0.93), (0.48, 0.93))


def rocket(canvas: Canvas) -> None:
    """A rocket with fins, a window and a flame."""
    canvas.shape((0.50, 0.04), (0.64, 0.22), (0.66, 0.74), (0.34, 0.74), (0.36, 0.22))
    canvas.shape((0.34, 0.52), (0.16, 0.82), (0.34, 0.76))
    canvas.shape((0.66, 0.52), (0.84, 0.82), (0.66, 0.76))
    canvas.patch((255, 150, 40), (0.40, 0.75), (0.60, 0.75), (0.50, 0.98))
    canvas.patch((255, 236, 120), (0.45, 0.75), (0.55, 0.75), (0.50, 0.88))
    canvas.dot(0.50, 0.32, 0.085, 0.085, LIGHT)
    canvas.dot(0.50, 0.32, 0.055, 0.055, (110, 176, 220))


def mushroom(canvas: Canvas) -> None:
    """A mushroom: a coloured cap on a pale stem."""
    canvas.shape((0.06, 0.50), (0.12, 0.28), (0.30, 0.12), (0.50, 0.08), (0.70, 0.12), (0.88, 0.28), (0.94, 0.50))
    canvas.patch((244, 232, 208), (0.36, 0.49), (0.64, 0.49), (0.70, 0.94), (0.30, 0.94))
    canvas.dot(0.50, 0.50, 0.44, 0.045, (226, 206, 176))


def chair(canvas: Canvas) -> None:
    """A chair seen from the front."""
    canvas.shape((0.24, 0.06), (0.76, 0.06), (0.74, 0.48), (0.26, 0.48))
    canvas.shape((0.18, 0.50), (0.82, 0.50), (0.88, 0.64), (0.12, 0.64))
    for x in (0.16, 0.76):
        canvas.patch(WOOD, (x, 0.64), (x + 0.08, 0.64), (x + 0.08, 0.96), (x, 0.96))


def boat(canvas: Canvas) -> None:
    """A sailing boat: a coloured hull and two sails."""
    canvas.shape((0.06, 0.66), (0.94, 0.66), (0.80, 0.90), (0.20, 0.90))
    canvas.patch(WOOD, (0.47, 0.06), (0.51, 0.06), (0.51, 0.67), (0.47, 0.67))
    canvas.patch(LIGHT, (0.54, 0.10), (0.90, 0.60), (0.54, 0.60))
    canvas.patch((240, 226, 196), (0.44, 0.18), (0.44, 0.60), (0.16, 0.60))


def guitar(canvas: Canvas) -> None:
    """A guitar with a long neck."""
    canvas.oval(0.50, 0.76, 0.24, 0.20)
    canvas.oval(0.50, 0.54, 0.18, 0.15)
    canvas.patch(WOOD, (0.46, 0.12), (0.54, 0.12), (0.54, 0.60), (0.46, 0.60))
    canvas.patch(DARK, (0.43, 0.02), (0.57, 0.02), (0.55, 0.13), (0.45, 0.13))
    canvas.dot(0.50, 0.62, 0.075, 0.075, DARK)
    canvas.patch(DARK, (0.40, 0.83), (0.60, 0.83), (0.60, 0.865), (0.40, 0.865))


MORE_CLASSES: dict[str, Callable[[Canvas], None]] = {
    **CLASSES, "rabbit": rabbit, "penguin": penguin, "bird": bird, "fish": fish, "mug": mug, "lamp": lamp,
    "umbrella": umbrella, "rocket": rocket, "mushroom": mushroom, "chair": chair, "boat": boat, "guitar": guitar,
}  # fmt: skip
DRESSED_NECK_Y: dict[str, float] = {**NECK_Y, "rabbit": 0.59, "penguin": 0.42}
DRESSED = (*LIVE, "rabbit", "penguin")
