"""Figures: the same bytes every time, nothing from outside, and sense at the edges of what a run can hold."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from matplotlib.figure import Figure

from crystallized_safety.figures import (
    dose_response_figure,
    effects_figure,
    label_shares_figure,
    readability_figure,
    svg,
)
from crystallized_safety.figures.readability import _spread
from crystallized_safety.figures.selection import panel
from crystallized_safety.records import Summary
from tests.example_summary import example_summary, rate

ALL = (readability_figure, dose_response_figure, label_shares_figure, effects_figure)
NAN = float("nan")


def texts(figure: Figure) -> str:
    return "\n".join(e.text or "" for e in ET.fromstring(svg(figure)).iter() if e.tag.endswith("text"))


def strange_summaries() -> dict[str, Summary]:
    """Summaries that a run can truly give: failed, cut short, or tiny."""
    full = example_summary()
    reading, effect = full.readability, full.effects["enhance"]
    empty_rate = rate(0, 0, unscored=64)
    lost = replace(
        effect, value=NAN, low=NAN, high=NAN, steered=empty_rate, calibrate_value=NAN, p_null=None, null_effects=()
    )
    no_interval = tuple(replace(point, low=NAN, high=NAN) for point in reading.layers)
    unread = tuple(replace(point, auroc=NAN, low=NAN, high=NAN, selection_auroc=NAN) for point in reading.layers)
    unscored = tuple(replace(p, rate=empty_rate, labels={"unscored": 64}) for p in full.doses)
    return {
        "no coherent dose": replace(full, doses=tuple(replace(p, coherent=p.kappa == 0) for p in full.doses)),
        "one side": replace(full, effects={"enhance": effect}),
        "no effects": replace(full, effects={}),
        "no doses": replace(full, doses=()),
        "nothing at all": replace(full, doses=(), effects={}, readability=replace(reading, layers=(), confounds={})),
        "effect without interval": replace(full, effects={"enhance": lost}),
        "auroc without interval": replace(full, readability=replace(reading, layers=no_interval)),
        "auroc not measured": replace(full, readability=replace(reading, layers=unread)),
        "one layer": replace(full, readability=replace(reading, layers=reading.layers[28:30])),
        "chosen layer missing": replace(full, readability=replace(reading, best_layer=99)),
        "n = 0": replace(full, doses=unscored),
        "empty labels": replace(full, doses=tuple(replace(p, labels={}, rate=rate(0, 0)) for p in full.doses)),
        "single dose": replace(full, doses=full.doses[1:2]),
        "below chance": replace(
            full, readability=replace(reading, confounds={"a very long baseline name indeed": 0.2})
        ),
    }


@pytest.mark.parametrize("make", ALL)
def test_svg_is_the_same_twice_and_stands_alone(make):
    first, second = svg(make(example_summary()), name="a"), svg(make(example_summary()), name="a")
    assert first == second
    assert len(first) < 80_000
    assert " style=" not in first  # a strict Content-Security-Policy forbids it
    assert "<style" not in first
    assert re.findall(r'(?:href|src)="(?!#a-)', first) == []
    assert "url(" not in re.sub(r"url\(#a-", "", first)
    assert "currentColor" in first
    assert "#000" not in first  # black ink would vanish in the dark


@pytest.mark.parametrize("make", ALL)
def test_ids_are_unique_and_every_reference_resolves(make):
    text = svg(make(example_summary()), name="a")
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(ids)
    assert not set(ids) & set(re.findall(r' id="([^"]+)"', svg(make(example_summary()), name="b")))


def test_svg_does_not_depend_on_the_process_or_the_users_settings(tmp_path: Path):
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\n")
    code = (
        "from tests.example_summary import example_summary as e\n"
        "from crystallized_safety.figures import dose_response_figure as d, svg\n"
        "print(svg(d(e())))"
    )
    env = {
        **os.environ,
        "PYTHONHASHSEED": "5",
        "MATPLOTLIBRC": str(tmp_path),
        "PYTHONPATH": "src:.",
        "PYTHONIOENCODING": "utf-8",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.decode().strip() == svg(dose_response_figure(example_summary()))


def test_standalone_svg_brings_colours_for_light_and_dark():
    assert "prefers-color-scheme:dark" in svg(effects_figure(example_summary()), standalone=True)


@pytest.mark.parametrize("case", strange_summaries())
@pytest.mark.parametrize("make", ALL)
def test_edges_draw_without_warning(make, case):
    figure = make(strange_summaries()[case])
    text = svg(figure)
    assert not re.search(r"\bnan\b", text)
    assert figure.get_label()


def test_readability_names_the_choice_the_threshold_and_the_baselines():
    words = texts(readability_figure(example_summary()))
    for needed in (
        "n = 200",
        "layer 14",
        "0.96 [0.91, 1.00]",
        "chance",
        "0.80",
        "TF-IDF 0.58",
        "length 0.52",
        "(−1)",
        "(−5)",
    ):
        assert needed in words


def test_dose_response_names_sides_layers_splits_and_n():
    words = texts(dose_response_figure(example_summary()))
    for needed in (
        "suppress: harmful",
        "enhance: harmless",
        "layer 14",
        "calibrate, n = 63–64",
        "test, n = 200",
        "coherent window",
    ):
        assert needed in words
    assert "no coherent dose" in texts(dose_response_figure(strange_summaries()["no coherent dose"]))
    assert "n = 0" in texts(dose_response_figure(strange_summaries()["n = 0"]))


def test_one_baseline_serves_every_layer():
    full = example_summary()
    once = tuple(replace(p, layer=0 if p.kappa == 0 else p.layer) for p in full.doses)
    shown = panel(replace(full, doses=once), "enhance")
    assert shown.sweep[0].kappa == 0
    assert [points[0].kappa for points in shown.others] == [0, 0]
    assert shown.layer == 14


def test_another_template_position_is_another_curve():
    full = example_summary()
    more = tuple(replace(p, position=-5, rate=rate(1, 64)) for p in full.doses if p.layer == 14 and p.kappa)
    shown = panel(replace(full, doses=full.doses + more), "suppress")
    assert shown.sweep == panel(full, "suppress").sweep
    assert len(shown.others) == 3


def test_a_panel_keeps_to_its_side_layer_and_split():
    shown = panel(example_summary(), "suppress")
    assert [p.kappa for p in shown.sweep] == [-4, -3, -2, -1.5, -1, -0.5, -0.25, 0]
    assert {p.split for p in shown.sweep} == {"calibrate"}
    assert [p.kappa for p in shown.test] == [-2, 0]
    assert [points[0].layer for points in shown.others] == [10, 18]
    assert shown.coherent_end == -2


def test_the_window_ends_at_the_first_incoherent_dose():
    points = tuple(replace(p, coherent=p.kappa not in (0.5,)) for p in example_summary().doses)
    assert panel(replace(example_summary(), doses=points), "enhance").coherent_end == 0.25


def test_margin_labels_never_touch_and_stay_inside():
    placed = _spread([0.5, 0.5, 0.51, 0.99, 1.0], gap=0.05, top=1.0)
    assert placed == sorted(placed)
    assert all(b - a >= 0.05 - 1e-9 for a, b in pairwise(placed))
    assert max(placed) <= 1.0
