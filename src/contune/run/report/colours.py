"""Colours of tables and figures: chosen to be told apart by colour-blind readers and in print."""

# ColorBrewer YlGnBu: lightness falls steadily, so it reads in grey as well.
HEAT = ("#ffffd9", "#edf8b1", "#c7e9b4", "#7fcdbb", "#41b6c4", "#1d91c0", "#225ea8", "#253494", "#081d58")
# Okabe and Ito, without black and yellow, which vanish on one of the two page backgrounds.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def heat_colour(share: float) -> tuple[int, int, int]:
    """The red, green and blue (0 to 255) of a share from 0 to 1.

    >>> heat_colour(0.0), heat_colour(1.0)
    ((255, 255, 217), (8, 29, 88))
    """
    place = min(max(share, 0.0), 1.0) * (len(HEAT) - 1)
    lower = min(int(place), len(HEAT) - 2)
    rest = place - lower
    left, right = _channels(HEAT[lower]), _channels(HEAT[lower + 1])
    red, green, blue = (round(a + (b - a) * rest) for a, b in zip(left, right, strict=True))
    return red, green, blue


def ink_on(colour: tuple[int, int, int]) -> str:
    """Black or white, whichever contrasts more with `colour` (WCAG 2 relative luminance)."""
    red, green, blue = (_linear(channel / 255) for channel in colour)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#101418" if luminance > 0.18 else "#ffffff"


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
