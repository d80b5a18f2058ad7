"""How each kind of thing looks: one short function per kind, painting into its box in height units (see `brush.py`)."""

import numpy as np

from .brush import Brush, Colour, shade

RGB: dict[str, Colour] = {
    "red": (212, 44, 44), "orange": (242, 134, 30), "yellow": (248, 214, 58), "green": (40, 146, 78),
    "blue": (46, 100, 212), "purple": (126, 62, 176), "pink": (246, 138, 188), "white": (242, 242, 240),
}  # fmt: skip
SKIN = ((252, 214, 180), (232, 180, 138), (190, 130, 92), (128, 82, 58))
HAIR = ((52, 36, 30), (104, 66, 36), (206, 164, 84), (32, 30, 36), (150, 74, 40))
TROUSERS = ((46, 54, 82), (72, 68, 74), (92, 74, 58))
INK, WOOD, CREAM, GLASS, LAMP = (34, 30, 38), (122, 82, 50), (250, 244, 226), (176, 214, 236), (255, 220, 120)

# Joints of each pose in height units: head, then shoulder-elbow-hand and hip-knee-foot of both sides.
POSE_JOINTS = {
    "standing": dict(
        head=(0.23, 0.125), neck=(0.23, 0.29), hip=(0.23, 0.58),
        arm_a=((0.13, 0.31), (0.08, 0.44), (0.065, 0.56)), arm_b=((0.33, 0.31), (0.38, 0.44), (0.395, 0.56)),
        leg_a=((0.17, 0.60), (0.155, 0.77), (0.14, 0.95)), leg_b=((0.29, 0.60), (0.305, 0.77), (0.32, 0.95)),
    ),
    "waving": dict(
        head=(0.25, 0.125), neck=(0.25, 0.29), hip=(0.25, 0.58),
        arm_a=((0.15, 0.31), (0.09, 0.44), (0.065, 0.56)), arm_b=((0.35, 0.31), (0.46, 0.26), (0.49, 0.06)),
        leg_a=((0.19, 0.60), (0.175, 0.77), (0.16, 0.95)), leg_b=((0.31, 0.60), (0.325, 0.77), (0.34, 0.95)),
    ),
    "sitting": dict(
        head=(0.21, 0.13), neck=(0.20, 0.30), hip=(0.19, 0.62),
        arm_a=((0.18, 0.34), (0.26, 0.47), (0.40, 0.53)), arm_b=((0.22, 0.34), (0.30, 0.48), (0.45, 0.52)),
        leg_a=((0.20, 0.65), (0.44, 0.66), (0.46, 0.95)), leg_b=((0.22, 0.65), (0.52, 0.65), (0.56, 0.95)),
    ),
    "running": dict(
        head=(0.47, 0.13), neck=(0.44, 0.30), hip=(0.35, 0.58),
        arm_a=((0.41, 0.32), (0.24, 0.38), (0.19, 0.54)), arm_b=((0.47, 0.33), (0.56, 0.46), (0.68, 0.36)),
        leg_a=((0.32, 0.60), (0.25, 0.79), (0.06, 0.84)), leg_b=((0.38, 0.60), (0.56, 0.70), (0.57, 0.95)),
    ),
    "cheering": dict(
        head=(0.31, 0.145), neck=(0.31, 0.31), hip=(0.31, 0.60),
        arm_a=((0.22, 0.33), (0.11, 0.24), (0.06, 0.06)), arm_b=((0.40, 0.33), (0.51, 0.24), (0.56, 0.06)),
        leg_a=((0.26, 0.62), (0.20, 0.79), (0.15, 0.95)), leg_b=((0.36, 0.62), (0.42, 0.79), (0.47, 0.95)),
    ),
}  # fmt: skip


def person(brush: Brush, colour: Colour, pose: str, rng: np.random.Generator, night: bool) -> None:
    """A person in a shirt of the given colour; skin, hair and trousers are free."""
    skin, hair, trousers = (pool[rng.integers(len(pool))] for pool in (SKIN, HAIR, TROUSERS))
    joints = POSE_JOINTS[pose]
    if pose == "sitting":
        brush.box(0.03, 0.70, 0.33, 1.0, WOOD, "seat", r=0.02)
        brush.line([(0.06, 0.85), (0.30, 0.85)], 0.025, shade(WOOD, 0.75), "seat")
    for side, tone in (("a", 0.84), ("b", 1.0)):
        leg = joints[f"leg_{side}"]
        brush.line(leg, 0.11, shade(trousers, tone), "leg")
        brush.ellipse((leg[-1][0] + 0.025, leg[-1][1] + 0.005), 0.065, 0.045, INK, "leg")
        if side == "a":  # the far arm goes behind the body
            _arm(brush, joints["arm_a"], shade(colour, 0.84), skin)
    (nx, ny), (hx, hy) = joints["neck"], joints["hip"]
    brush.polygon([(nx - 0.115, ny), (nx + 0.115, ny), (hx + 0.10, hy + 0.04), (hx - 0.10, hy + 0.04)], colour, "body")
    brush.ellipse((nx, ny), 0.115, 0.05, colour, "body")
    _arm(brush, joints["arm_b"], shade(colour, 0.94), skin)
    x, y = joints["head"]
    brush.ellipse((x, y), 0.118, 0.124, hair, "head")
    brush.ellipse((x + 0.022, y + 0.028), 0.092, 0.092, skin, "head")
    brush.ellipse((x + 0.062, y + 0.02), 0.015, 0.02, INK, "head")
    brush.ellipse((x - 0.002, y + 0.02), 0.015, 0.02, INK, "head")
    brush.joint(head=(x, y), neck=(nx, ny), hip=(hx, hy))
    for limb, names in (("arm", ("shoulder", "elbow", "hand")), ("leg", ("hip", "knee", "foot"))):
        for side in "ab":
            points = joints[f"{limb}_{side}"]
            brush.joint(**{f"{name}_{side}": point for name, point in zip(names, points, strict=True)})


def _arm(brush: Brush, points: tuple, sleeve: Colour, skin: Colour) -> None:
    brush.line(points, 0.105, sleeve, "arm")
    brush.ellipse(points[-1], 0.056, 0.056, skin, "arm")


def cat(brush: Brush, colour: Colour, pose, rng, night: bool) -> None:
    dark = shade(colour, 0.8)
    brush.line([(0.26, 0.56), (0.10, 0.48), (0.07, 0.28), (0.13, 0.09)], 0.10, dark, "tail")
    for x, tone in ((0.40, 0.78), (0.74, 0.78), (0.30, 0.92), (0.64, 0.92)):
        brush.line([(x, 0.72), (x, 0.945)], 0.11, shade(colour, tone), "leg")
    brush.ellipse((0.51, 0.62), 0.33, 0.20, colour, "body")
    for points in ([(0.66, 0.30), (0.67, 0.0), (0.83, 0.16)], [(0.90, 0.16), (1.06, 0.0), (1.06, 0.32)]):
        brush.polygon(points, dark, "ear")
    brush.ellipse((0.86, 0.36), 0.225, 0.215, colour, "head")
    for x in (0.79, 0.96):
        brush.ellipse((x, 0.34), 0.032, 0.042, INK, "head")
    brush.ellipse((0.88, 0.44), 0.035, 0.025, (222, 120, 130), "head")


def dog(brush: Brush, colour: Colour, pose, rng, night: bool) -> None:
    dark = shade(colour, 0.72)
    brush.line([(0.22, 0.45), (0.10, 0.32), (0.06, 0.16)], 0.085, dark, "tail")
    for x, tone in ((0.36, 0.74), (0.76, 0.74), (0.25, 0.9), (0.65, 0.9)):
        brush.line([(x, 0.60), (x, 0.935)], 0.12, shade(colour, tone), "leg")
    brush.box(0.18, 0.36, 0.84, 0.70, colour, "body", r=0.15)
    brush.polygon([(0.62, 0.40), (0.76, 0.12), (0.96, 0.34), (0.84, 0.56)], colour, "body")
    brush.box(0.70, 0.03, 1.00, 0.38, colour, "head", r=0.12)
    brush.box(0.86, 0.18, 1.17, 0.38, shade(colour, 1.15), "head", r=0.08)
    brush.box(0.68, 0.05, 0.80, 0.40, dark, "ear", r=0.06)
    brush.ellipse((0.90, 0.15), 0.03, 0.038, INK, "head")
    brush.ellipse((1.14, 0.22), 0.04, 0.04, INK, "head")


def car(brush: Brush, colour: Colour, pose, rng, night: bool) -> None:
    brush.polygon([(0.28, 0.46), (0.50, 0.02), (1.16, 0.02), (1.46, 0.46)], colour, "body")
    glass = LAMP if night else GLASS
    brush.polygon([(0.40, 0.42), (0.56, 0.11), (0.79, 0.11), (0.79, 0.42)], glass, "window")
    brush.polygon([(0.87, 0.42), (0.87, 0.11), (1.12, 0.11), (1.33, 0.42)], glass, "window")
    brush.box(0.0, 0.40, 1.75, 0.82, colour, "body", r=0.13)
    brush.box(0.02, 0.70, 1.73, 0.80, shade(colour, 0.7), "body", r=0.04)
    brush.line([(0.83, 0.44), (0.83, 0.70)], 0.03, shade(colour, 0.66), "body")
    brush.ellipse((1.67, 0.54), 0.06, 0.075, (255, 246, 190), "body")
    brush.ellipse((0.05, 0.54), 0.04, 0.065, (190, 30, 36), "body")
    for x in (0.41, 1.36):
        brush.ellipse((x, 0.785), 0.215, 0.215, INK, "wheel")
        brush.ellipse((x, 0.785), 0.095, 0.095, (196, 198, 204), "wheel")


def house(brush: Brush, colour: Colour, pose, rng, night: bool) -> None:
    roof = ((120, 58, 46), (84, 84, 96), (96, 62, 42))[rng.integers(3)]
    brush.box(0.62, 0.06, 0.72, 0.36, shade(roof, 0.8), "roof")
    brush.box(0.07, 0.36, 0.81, 1.0, colour, "body")
    brush.polygon([(0.0, 0.42), (0.44, 0.0), (0.88, 0.42)], roof, "roof")
    brush.polygon([(0.0, 0.42), (0.44, 0.0), (0.44, 0.05), (0.06, 0.42)], shade(roof, 1.2), "roof")
    glass = LAMP if night else GLASS
    for x in (0.13, 0.57):
        brush.box(x, 0.52, x + 0.18, 0.72, CREAM, "window")
        brush.box(x + 0.025, 0.545, x + 0.155, 0.695, shade(glass, 0.9), "window")
    brush.box(0.35, 0.64, 0.53, 1.0, shade(WOOD, 0.72), "door", r=0.02)
    brush.ellipse((0.49, 0.83), 0.017, 0.017, LAMP, "door")


def tree(brush: Brush, colour: Colour, pose, rng, night: bool) -> None:
    brush.polygon([(0.27, 0.55), (0.37, 0.55), (0.41, 1.0), (0.23, 1.0)], WOOD, "trunk")
    brush.polygon([(0.27, 0.55), (0.31, 0.55), (0.30, 1.0), (0.23, 1.0)], shade(WOOD, 0.8), "trunk")
    crown = ((0.32, 0.47, 0.22), (0.16, 0.40, 0.16), (0.48, 0.40, 0.16), (0.22, 0.24, 0.17), (0.42, 0.23, 0.17))
    for x, y, r in crown:
        brush.ellipse((x, y), r, r, shade(colour, 0.84), "body")
    brush.ellipse((0.32, 0.17), 0.17, 0.17, shade(colour, 0.84), "body")
    for x, y, r in (*crown[1:], (0.32, 0.16, 0.15)):
        brush.ellipse((x + 0.01, y - 0.02), r * 0.8, r * 0.75, colour, "body")
    for x, y in rng.uniform((0.14, 0.10), (0.50, 0.48), (5, 2)):
        brush.ellipse((x, y), 0.035, 0.028, shade(colour, 1.3), "body")


def ball(brush: Brush, colour: Colour, pose, rng, night: bool) -> None:
    brush.ellipse((0.5, 0.5), 0.5, 0.5, shade(colour, 0.78), "body")
    brush.ellipse((0.47, 0.46), 0.43, 0.43, colour, "body")
    brush.line([(0.10, 0.42), (0.34, 0.56), (0.64, 0.58), (0.92, 0.44)], 0.10, CREAM, "body")
    brush.ellipse((0.34, 0.26), 0.11, 0.08, shade(colour, 1.6), "body")


def boat(brush: Brush, colour: Colour, pose, rng, night: bool) -> None:
    brush.line([(0.47, 0.02), (0.47, 0.76)], 0.035, WOOD, "trunk")
    brush.polygon([(0.51, 0.04), (0.51, 0.66), (0.93, 0.66)], colour, "sail")
    brush.polygon([(0.43, 0.14), (0.43, 0.66), (0.12, 0.66)], CREAM, "sail")
    brush.polygon([(0.0, 0.72), (0.98, 0.72), (0.80, 1.0), (0.16, 1.0)], colour, "body")
    brush.polygon([(0.0, 0.72), (0.98, 0.72), (0.955, 0.76), (0.02, 0.76)], CREAM, "body")
    brush.polygon([(0.09, 0.89), (0.87, 0.89), (0.80, 1.0), (0.16, 1.0)], shade(colour, 0.74), "body")


PAINTERS = {painter.__name__: painter for painter in (person, cat, dog, car, house, tree, ball, boat)}
