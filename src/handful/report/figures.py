"""Drawings of a run: curves of its training, and slices with structures or errors laid over them.

matplotlib is imported inside the functions, and never through pyplot: no window system, no global state.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from handful.artefacts import atomic_path
from handful.report.health import Panel, is_measured, loss_panel, loss_terms, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/ (without black)
FEW = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
# Tol, 2021, "Colour schemes", https://personal.sron.nl/~pault/ (discrete rainbow of 14)
MANY = (
    "#D1BBD7", "#AE76A3", "#882E72", "#1965B0", "#5289C7", "#7BAFDE", "#4EB265",
    "#90C987", "#CAE0AB", "#F7F056", "#F6C141", "#F1932D", "#E8601C", "#DC050C",
)  # fmt: skip
TERMS = tuple(colour for colour in FEW if colour not in ("#F0E442", "#0072B2"))
"""Colours of a loss's terms: without the yellow, too pale for a line, and the blue, too near the loss's own."""
MISSED, EXTRA, CONFUSED = "#FF3B30", "#32D7FF", "#FFFFFF"
"""Colours of the error map: in the reference only, in the prediction only, in both but as different structures.

Red and cyan differ in lightness too, and none of the three is the colour of a structure.
"""

POINTS = 500
"""A curve is thinned to this many points: more cannot be told apart at 900 pixels."""
FEW_POINTS = 12
"""Up to this many, each is marked."""
SIDE = 460
"""Pixels of the longer side of a slice."""


def structure_colours(count: int) -> tuple[str, ...]:
    """Return one colour a structure, distinguishable by colour-blind readers; beyond 14 they repeat."""
    palette = FEW if count <= len(FEW) else MANY
    # strides of 5 through the rainbow: structures with neighbouring numbers often lie side by side
    return tuple(palette[(5 * i if palette is MANY else i) % len(palette)] for i in range(count))


def write_progress(metrics: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write ``progress.png``, 900 pixels wide: losses, and the health of a pre-training or the speed of a training.

    Cheap enough to repeat often.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(png(health_curves(metrics) if is_measured(metrics) else curves(metrics)))


def curves(metrics: Sequence[Mapping[str, float]]) -> "Figure":
    """Draw losses, learning rate and steps per second over the steps.

    Args:
        metrics: rows of ``metrics.jsonl``; every number that is not bookkeeping is a term of the loss. Rows may lack
            a term, and there may be no row at all.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.2), dpi=100, layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(2.1, 1))
    steps = _column(metrics, "step")
    terms = loss_terms(metrics)
    loss = figure.add_subplot(grid[0, :])
    for number, name in enumerate(terms):
        _line(loss, steps, _column(metrics, name), name, colour=MANY[(3 * number + 3) % 14], width=1.1)
    _line(loss, steps, _column(metrics, "loss"), "loss", colour="#222222", width=2.0)
    _axis(loss, "loss", metrics)
    if metrics:
        names = loss.legend(
            loc="upper right", ncols=min(4, len(terms) + 1), fontsize=9, frameon=False
        ).get_texts()
        for text in names:
            text.set_parse_math(False)
    for place, key, title in (
        (grid[1, 0], "lr", "learning rate"),
        (grid[1, 1], "steps_per_s", "steps per second"),
    ):
        axes = figure.add_subplot(place)
        _line(axes, steps, _column(metrics, key), title, colour="#1965B0", width=1.6)
        _axis(axes, title, metrics)
        axes.set_ylim(bottom=0)
    return figure


def health_curves(metrics: Sequence[Mapping[str, float]]) -> "Figure":
    """Draw the loss of a pre-training and below it, small, everything that its health is judged by.

    Args:
        metrics: rows of ``metrics.jsonl``; a measure that no row has is left out.
    """
    from matplotlib.figure import Figure

    small = panels(metrics)
    rows = -(-len(small) // 3)
    figure = Figure(figsize=(9, 2.6 + 1.9 * rows), dpi=100, layout="constrained")
    grid = figure.add_gridspec(1 + rows, 3, height_ratios=(2.6, *[1.9] * rows))
    _panel(figure.add_subplot(grid[0, :]), loss_panel(metrics), metrics)
    for place, panel in enumerate(small):
        _panel(figure.add_subplot(grid[1 + place // 3, place % 3]), panel, metrics)
    return figure


def panel_curves(panel: Panel, metrics: Sequence[Mapping[str, float]]) -> "Figure":
    """Draw one panel by itself, without its title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 2.3), dpi=100, layout="constrained")
    _panel(figure.add_subplot(), replace(panel, title=""), metrics)
    return figure


def overlay(
    image: NDArray[np.floating],
    label: NDArray[np.integer] | None,
    *,
    pixel_mm: tuple[float, float],
    window: tuple[float, float],
    colours: Sequence[str],
    tint: float = 0.45,
    letters: str = "",
    bar_mm: float = 0.0,
) -> "Figure":
    """Draw one slice, structures as tinted areas with a solid outline, voxels in their true proportions.

    Args:
        image: (rows, columns) intensities, first row on top.
        label: (rows, columns) class indices, 0 background; None draws the image alone.
        pixel_mm: height and width of a pixel.
        window: intensities drawn black and white.
        colours: of class 1, 2, ...
        tint: how much of the colour covers the area, in [0, 1].
        letters: what lies to the left, right, top, bottom: ``"RLAP"``.
        bar_mm: length of a scale bar; 0 draws none.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    size = _pixels(image.shape, pixel_mm)
    low, high = window
    grey: NDArray[np.float64] = np.clip((image - low) / max(high - low, 1e-12), 0, 1)
    rgb = np.repeat(np.minimum(_smooth(grey, size), 1)[..., None], 3, axis=2)  # 1 + rounding is no colour
    if label is not None:
        large = _blocks(label, size)
        for value, colour in enumerate(colours, start=1):
            mask = large == value
            rim = mask & ~ndimage.binary_erosion(mask, iterations=2)
            rgb[mask] = (1 - tint) * rgb[mask] + tint * np.array(to_rgb(colour))
            rgb[rim] = to_rgb(colour)
        rgb[ndimage.binary_dilation(large > 0) & (large == 0)] = (
            0  # a thin dark edge keeps pale colours visible
        )

    figure = Figure(figsize=(size[1] / 100, size[0] / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(rgb, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    places = (
        (0.025, 0.5, "left", "center"),
        (0.975, 0.5, "right", "center"),
        (0.5, 0.98, "center", "top"),
        (0.5, 0.02, "center", "bottom"),
    )
    for letter, (x, y, across, along) in zip(letters, places):
        _caption(axes, x, y, letter, ha=across, va=along)
    if bar_mm:
        width = bar_mm / (image.shape[1] * pixel_mm[1])
        for colour, thickness in (("black", 5), ("white", 3)):
            axes.plot(
                [0.04, 0.04 + width],
                [0.045, 0.045],
                color=colour,
                linewidth=thickness,
                transform=axes.transAxes,
            )
        _caption(axes, 0.04, 0.065, f"{bar_mm:g} mm", ha="left", va="bottom")
    return figure


def error_map(reference: NDArray[np.integer], prediction: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return 0 where two label maps agree, 1 missed, 2 extra, 3 one structure taken for another."""
    kind = np.zeros(reference.shape, np.uint8)
    wrong = reference != prediction
    kind[wrong & (prediction == 0)] = 1
    kind[wrong & (reference == 0)] = 2
    kind[wrong & (reference != 0) & (prediction != 0)] = 3
    return kind


def png(figure: "Figure", *, dpi: int = 100) -> bytes:
    """Render a figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may hold letters the font has not
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _column(metrics: Sequence[Mapping[str, float]], key: str) -> NDArray[np.float64]:
    return np.array([row.get(key, np.nan) for row in metrics], np.float64)


def _line(
    axes: "Axes",
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    name: str,
    *,
    colour: str,
    width: float,
    style: str = "-",
) -> None:
    """Draw a curve; a long one as the means of ``POINTS`` stretches over a pale band from least to greatest."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) > POINTS:
        cuts = np.linspace(0, len(x), POINTS, endpoint=False).astype(int)
        count = np.diff(np.append(cuts, len(x)))
        low, high = np.minimum.reduceat(y, cuts), np.maximum.reduceat(y, cuts)
        x, y = np.add.reduceat(x, cuts) / count, np.add.reduceat(y, cuts) / count
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        x,
        y,
        color=colour,
        linewidth=width,
        linestyle=style,
        label=name,
        marker="o" if len(x) <= FEW_POINTS and style == "-" else "",
        markersize=4,
    )


def _panel(axes: "Axes", panel: Panel, metrics: Sequence[Mapping[str, float]]) -> None:
    steps, guesses = _column(metrics, "step"), 0
    alone = len(panel.lines) - len(panel.dashed) == 1
    terms = [name for name in panel.lines if name != "loss"]
    for name, key in panel.lines.items():
        if name in panel.dashed:
            _line(axes, steps, _column(metrics, key), name, colour="#777777", width=1.3, style="--")
            guesses += 1
        else:
            whole = alone or name == "loss"
            colour = "#1965B0" if whole else TERMS[terms.index(name) % len(TERMS)]
            _line(axes, steps, _column(metrics, key), name, colour=colour, width=1.8 if whole else 1.2)
    if panel.level is not None:
        axes.axhline(panel.level, color="#777777", linewidth=1.3, linestyle="--", label="chance")
        guesses += 1
    _axis(axes, panel.title, metrics)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    if len(panel.lines) + guesses > 1:
        for text in axes.legend(fontsize=8, frameon=False, ncols=min(4, len(panel.lines))).get_texts():
            text.set_parse_math(False)


def _axis(axes: "Axes", title: str, metrics: Sequence[Mapping[str, float]]) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.set_xlabel("step", fontsize=9)
    axes.margins(x=0.01)
    axes.locator_params(axis="x", nbins=6)
    if not metrics:
        axes.text(
            0.5,
            0.5,
            "nothing recorded yet",
            ha="center",
            va="center",
            transform=axes.transAxes,
            color="#777777",
        )


def _caption(axes: "Axes", x: float, y: float, text: str, *, ha: str, va: str) -> None:
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=3, foreground="black")]
    axes.text(
        x, y, text, ha=ha, va=va, color="white", fontsize=15, transform=axes.transAxes, path_effects=outline
    )


def _pixels(shape: Sequence[int], pixel_mm: tuple[float, float]) -> tuple[int, int]:
    """Return rows and columns of a drawing whose longer side is ``SIDE`` and whose proportions are the patient's."""
    height, width = shape[0] * pixel_mm[0], shape[1] * pixel_mm[1]
    scale = SIDE / max(height, width)
    return max(40, round(height * scale)), max(40, round(width * scale))


def _smooth(array: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Interpolate to ``size``, outer edges on outer edges."""
    factors = [new / old for new, old in zip(size, array.shape)]
    return np.asarray(ndimage.zoom(array, factors, order=1, mode="nearest", grid_mode=True), np.float64)


def _blocks(label: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.integer]:
    """Repeat voxels to ``size``: their borders stay where they are."""
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, label.shape))
    return label[np.ix_(rows, columns)]
