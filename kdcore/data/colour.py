"""Colours in a configuration."""

from typing import Any

from kdcore.errors import ConfigError

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

WHITE: Colour = (255, 255, 255)


def colour_of(value: Any) -> Colour:
    """A colour from a name, `#rrggbb`, or red, green and blue.

    Raises:
        ConfigError: it is none of these.
    """
    levels = value
    if isinstance(value, str):
        from PIL import ImageColor  # not needed for image tables

        try:
            levels = ImageColor.getrgb(value)
        except ValueError:
            levels = ()
    if isinstance(levels, (list, tuple)) and len(levels) == 3:
        red, green, blue = levels
        if all(type(level) is int and 0 <= level <= 255 for level in levels):
            return red, green, blue
    raise ConfigError(
        f"background is {value!r}, but must be a colour: a name like 'white', '#rrggbb', or "
        f"[red, green, blue], each from 0 to 255"
    )
