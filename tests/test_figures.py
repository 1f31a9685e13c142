from __future__ import annotations

import io
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from worldflow import figures, look

SCORES = np.random.default_rng(0).gamma(2.0, 2.0, 40)
FLAGS = np.zeros(40, bool)
FLAGS[[5, 6, 7, 20]] = True
HISTORY = [{"step": k, "seconds": k / 10, "flow/above_floor": 1 / k} for k in range(1, 101)]
HISTORY += [{"step": k, "seconds": k / 10, "held_out/above_floor": 2 / k} for k in range(10, 101, 10)]

MAKERS: dict[str, Callable[[], Figure]] = {
    "horizon": lambda: figures.horizon_figure(
        {"model": [30.0, 28.0, 27.0], "copy last": [31.0, 24.0, 20.0]},
        intervals={"model": ([29, 27, 26], [31, 29, 28])},
    ),
    "timeline": lambda: figures.timeline_figure(
        {"normal": SCORES, "gravity": SCORES * 3}, active={"gravity": FLAGS}, threshold=10.0, title="Scores"
    ),
    "compressed": lambda: figures.timeline_figure({"gravity": SCORES**4}, is_compressed=True),
    "roc": lambda: figures.roc_figure({"NLL": (SCORES, SCORES + 2), "frame difference": (SCORES, SCORES)}),
    "auroc": lambda: figures.auroc_figure(
        {"gravity": {"frame difference": 0.6, "NLL": 0.97}, "teleport": {"NLL": None}}
    ),
    "training": lambda: figures.training_figure(HISTORY),
}


def panel(figure: Figure, index: int = 0) -> Axes:
    return figure.axes[index]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


# -- every figure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_figures_have_their_own_look_and_leave_no_trace(name: str) -> None:
    with mpl.rc_context({"axes.facecolor": "black", "lines.linewidth": 9.0}):
        before = dict(mpl.rcParams)
        styled = look.encode_figure(MAKERS[name](), suffix=".png")
        assert dict(mpl.rcParams) == before
    assert styled == look.encode_figure(MAKERS[name](), suffix=".png")


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_cut_off(name: str) -> None:
    figure = MAKERS[name]()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    pixels = np.asarray(Image.open(buffer).convert("RGB"))
    assert pixels.min() < 128  # something is drawn
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert np.all(edge == 255)


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_saving_is_repeatable(tmp_path: Path, suffix: str) -> None:
    figure = MAKERS["roc"]()
    first = figures.save_figure(figure, tmp_path / f"a{suffix}").read_bytes()
    assert figures.save_figure(figure, tmp_path / f"b{suffix}").read_bytes() == first  # and drawing moved nothing
    assert figures.save_figure(MAKERS["roc"](), tmp_path / f"c{suffix}").read_bytes() == first
    assert first.startswith({".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix])


def test_unknown_suffix_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one of \.svg, \.png, \.pdf, got '\.pngg'; did you mean '\.png'"):
        figures.save_figure(MAKERS["roc"](), tmp_path / "figure.pngg")
    assert list(tmp_path.iterdir()) == []


def test_pyplot_is_never_imported() -> None:
    code = "import sys, worldflow.figures, worldflow.strips, worldflow.report as r; " + (
        "f = worldflow.figures.horizon_figure({'a': [1.0]}); r.Report('t').figure(f); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- each figure -------------------------------------------------------------------------------------------------------


def test_horizon_shows_curves_intervals_and_names() -> None:
    axes = panel(MAKERS["horizon"]())
    model, copied = axes.lines
    np.testing.assert_array_equal(model.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(model.get_ydata(), [30, 28, 27])
    assert model.get_color() == look.COLORS[0] and copied.get_color() == look.FAINT
    assert copied.get_linestyle() == "--" and model.get_linestyle() == "-"
    low, high = axes.collections[0].get_datalim(axes.transData).get_points()[:, 1]
    assert (low, high) == (26, 31)
    assert sorted(texts(axes)) == ["copy last", "model"]


def test_names_at_line_ends_do_not_overlap() -> None:
    figure = figures.horizon_figure({name: [0.0, 1.0 + 1e-3 * k] for k, name in enumerate("abcdef")} | {"low": [0, -9]})
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in panel(figure).texts), key=lambda box: box.y0)
    assert len(boxes) == 7
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in itertools.pairwise(boxes))  # within a pixel


def test_timeline_shades_anomalies_and_marks_alarms() -> None:
    figure = MAKERS["timeline"]()
    normal, gravity = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["normal", "gravity"]
    assert len(normal.patches) == 0
    spans = [patch.get_extents().transformed(gravity.transData.inverted()) for patch in gravity.patches]
    np.testing.assert_allclose([(span.x0, span.x1) for span in spans], [(4.5, 7.5), (19.5, 20.5)], atol=1e-6)
    alarms = gravity.lines[-1]
    np.testing.assert_array_equal(alarms.get_xdata(), np.flatnonzero(SCORES * 3 > 10.0))
    assert [axes.get_title(loc="right") for axes in figure.axes] == ["", "anomaly"]
    assert "alarm above" in texts(normal)


def test_compressed_timeline_has_few_readable_ticks() -> None:
    for values in (SCORES**4, SCORES * 1e-4, -(SCORES**3), np.zeros(5), np.array([1e9, 1.0, 2.0])):
        figure = figures.timeline_figure({"a": values}, is_compressed=True)
        ticks = panel(figure).get_yticks()
        low, high = panel(figure).get_ylim()
        assert 0 <= len(ticks) <= 7 and np.all((ticks >= low) & (ticks <= high))


def test_roc_names_the_area() -> None:
    axes = panel(figures.roc_figure({"NLL": ([0.0, 1.0, 2.0], [1.0, 3.0])}))
    assert axes.get_legend_handles_labels()[1] == ["NLL  0.750"]


def test_auroc_table_reads_right() -> None:
    axes = panel(MAKERS["auroc"]())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["NLL", "frame\ndifference"]  # baseline last
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gravity", "teleport"]
    assert texts(axes) == ["0.97", "0.60", "-", "-"]
    assert [text.get_fontweight() for text in axes.texts] == ["bold", "normal", "normal", "normal"]


def test_wide_auroc_table_keeps_its_headings_apart() -> None:
    names = ["surprise", "frame", "frame, 8-step mean", "action", "reward", "reconstruction", "frame difference"]
    figure = figures.auroc_figure({"actuator gain": dict.fromkeys(names, 0.5)})
    assert figure.get_size_inches()[0] <= look.WIDTH
    boxes = [label.get_window_extent() for label in panel(figure).get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_training_draws_both_series_and_skips_gaps() -> None:
    history = [dict(record) for record in HISTORY]
    history[50]["flow/above_floor"] = None  # as the log writes what was not finite  # pyright: ignore
    axes = panel(figures.training_figure(history, smoothing=0.03))
    raw, mean, held_out = axes.lines
    assert np.isnan(raw.get_ydata()[50]) and np.isfinite(mean.get_ydata()).all()  # pyright: ignore
    np.testing.assert_allclose(mean.get_ydata()[10], np.mean([1 / 10, 1 / 11, 1 / 12]))  # pyright: ignore
    np.testing.assert_allclose(mean.get_ydata()[50], np.mean([1 / 50, 1 / 52]))  # pyright: ignore
    np.testing.assert_allclose(np.asarray(held_out.get_ydata()), 2 / np.arange(10, 101, 10))
    assert sorted(texts(axes)) == ["held out", "training"]


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="curves must hold at least one entry"):
        figures.horizon_figure({})
    with pytest.raises(ValueError, match="'model' must be finite, got 1 NaN"):
        figures.horizon_figure({"model": [1.0, np.nan]})
    with pytest.raises(ValueError, match=r"'model' must have shape \(time,\), not empty, got \(2, 2\)"):
        figures.horizon_figure({"model": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"intervals names 'modle', which is none of.*did you mean 'model'"):
        figures.horizon_figure({"model": [1.0]}, intervals={"modle": ([0.0], [1.0])})
    with pytest.raises(ValueError, match=r"active\['a'\] must have shape \(40,\), got \(3,\)"):
        figures.timeline_figure({"a": SCORES}, active={"a": [True, False, True]})
    with pytest.raises(ValueError, match="between 0 and 1"):
        figures.auroc_figure({"gravity": {"NLL": 97.0}})
    with pytest.raises(ValueError, match=r"no record of the history has 'step' and one of .*it has \['loss', 'step'\]"):
        figures.training_figure([{"step": 1, "loss": 2.0}])
