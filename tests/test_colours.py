"""Colours of plots and of the report page, as people with colour-vision deficiencies see them."""

import re
from itertools import combinations, pairwise

import numpy as np
import pytest

from mixmim_bench.report import dots, matrix, page, style

# Machado, Oliveira and Fernandes (2009), IEEE TVCG 15(6), severity 1.0; of linear RGB
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
XYZ = np.array(  # of linear sRGB, IEC 61966-2-1
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])  # D65
LEAST = 10.0  # CIE76 difference of colours that shape does not tell apart


def lab(colour, vision="normal"):
    """CIE Lab of a hex colour in a colour vision."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * each for each in colour[1:])
    channels = np.array([int(digits[place : place + 2], 16) for place in (0, 2, 4)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    x = XYZ @ np.clip(VISIONS[vision] @ linear, 0, 1) / WHITE
    f = np.where(x > (6 / 29) ** 3, np.cbrt(x), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def too_close(colours, vision):
    """Pairs of colours that cannot be told apart."""
    return [
        pair
        for pair in combinations(dict.fromkeys(colours), 2)
        if np.linalg.norm(lab(pair[0], vision) - lab(pair[1], vision)) < LEAST
    ]


def page_colours():
    """The colours of the page's plots in the order of the models, and those of texts in each theme."""
    of_models = re.search(r"COLOURS = \[(.*?)\]", page._asset("page.js"))[1]
    css = page._asset("page.css")
    light, dark = (re.search(rf":root{theme} \{{(.*?)\}}", css, re.DOTALL)[1] for theme in ("", r"\[.*?\]"))
    texts = [
        [dict(re.findall(r"--([\w-]+): *(#\w+)", block))[name] for name in ("ink", "soft", "link")]
        for block in (light, dark)
    ]
    errors = re.findall(r"\.error \{ color: (#\w+)", css)
    return re.findall(r"#\w{6}", of_models), [[*t, e] for t, e in zip(texts, errors, strict=True)]


def test_the_simulation_is_that_of_the_paper():
    """Greys stay as they are, and pairs that are known to be confused come closer."""
    for vision, matrix_ in VISIONS.items():
        assert matrix_.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-5)
        assert lab("#808080", vision) == pytest.approx(lab("#808080"), abs=0.01)
    assert lab("#ffffff") == pytest.approx([100, 0, 0], abs=0.01)
    assert lab("#ff0000") == pytest.approx([53.24, 80.09, 67.20], abs=0.05)  # by colour-science and others
    red, green = "#C0504D", "#7D8A3A"
    assert not too_close([red, green], "normal") and too_close([red, green], "deuteranopia")
    blue, teal = "#1F77B4", "#17808F"
    assert not too_close([blue, teal], "normal") and too_close([blue, teal], "tritanopia")


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_of_plots_are_told_apart(vision):
    """The background is grey, and bars are alone in their figure."""
    assert too_close([*style.COLOURS, style.OTHERS], vision) == []
    assert dots.BAR in style.COLOURS


@pytest.mark.parametrize("vision", VISIONS)
def test_groups_that_look_alike_have_other_markers(vision):
    """Of more groups than colours, those of the same colour have other markers."""
    looks = [style.look(place) for place in range(len(style.COLOURS) * len(style.MARKERS))]
    assert len({(each["color"], each["marker"]) for each in looks}) == len(looks)
    for first, second in combinations(looks, 2):
        if first["marker"] == second["marker"]:
            assert not too_close([first["color"], second["color"]], vision)


@pytest.mark.parametrize("vision", VISIONS)
def test_shades_of_a_matrix_get_darker(vision):
    lightness = [lab(shade, vision)[0] for shade in matrix.SHADES]
    assert all(a > b + LEAST for a, b in pairwise(lightness))


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_of_the_page_are_told_apart(vision):
    of_models, themes = page_colours()
    assert len(of_models) == 7 and len(themes) == 2
    assert too_close(of_models, vision) == []
    for texts in themes:
        assert len(texts) == 4
        assert too_close(texts, vision) == []
