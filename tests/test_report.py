from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldflow import video
from worldflow.figures import horizon_figure
from worldflow.report import Report
from worldflow.strips import imagined_figure

CLIP = np.random.default_rng(0).integers(0, 256, (4, 16, 20, 3), dtype=np.uint8)
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers what a test asks about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.words.setdefault(tag, []).append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def full() -> Report:
    report = Report("A <report>", "made by `a test` & others")
    report.text('One **bold** word.\n\n- first\n- second <script>alert("x")</script>\n\nLast.')
    report.headline({"dB": 6.25, "steps": 1234.0})
    for title in ("Numbers", "Pictures", 'Sett"ings'):
        report.section(title)
    report.table(["name", "value"], [["a<b", 1.0], ["c", 2.5]], caption="A & B", best_in_column={"value": max})
    report.figure(horizon_figure({"model": [1.0, 2.0]}), 'A "figure"')
    report.figure(imagined_figure(CLIP, CLIP), "A strip")
    report.video(video.encode_video(CLIP), "A GIF")
    report.text("Between.")
    report.video(video.encode_video(CLIP, suffix=".mp4"), "An MP4")
    report.image(CLIP[0], "Pixels")
    report.keyvalues({"path": "a/<b>", "seconds": 3.14159}, formats={"seconds": ".1f"})
    return report


def test_page_is_well_formed_and_loads_nothing(full: Report) -> None:
    text = full.html()
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "poster", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#section-"))
    assert not re.search(r"url\(|@import|https?://|//\w", re.sub(r"data:[^\"]*", "", text))
    ids = {attributes["id"] for attributes in page.named("h2")}
    assert [a["href"] for a in page.named("a")] == [f"#section-{k}" for k in (1, 2, 3)]
    assert ids == {"section-1", "section-2", "section-3"}


def test_media_are_inside(full: Report) -> None:
    page = Page(full.html())
    sources = [str(image["src"]) for image in page.named("img")]
    assert sources[0].startswith("data:image/svg+xml,<?xml version='1.0'")
    assert sources[1].startswith("data:image/webp;base64,")  # noise is no smaller so
    (strip, moving, still) = (Image.open(io.BytesIO(base64.b64decode(s.split(",")[1]))) for s in sources[1:])
    assert getattr(moving, "n_frames", 1) == len(CLIP) and getattr(strip, "n_frames", 1) == 1
    np.testing.assert_array_equal(np.asarray(still), CLIP[0])
    (mp4,) = page.named("video")
    assert str(mp4["src"]).startswith("data:video/mp4;base64,")
    assert {"autoplay", "loop", "muted", "playsinline"} <= mp4.keys()
    assert [image["width"] for image in page.named("img")][2:] == ["20", "20"]
    assert page.named("img")[0]["alt"] == 'A "figure"'


def test_neighboring_pictures_share_a_row(full: Report) -> None:
    rows = re.findall(r'<div class="pictures">(.*?)</div>', full.html(), flags=re.DOTALL)
    assert [row.count("<figure") for row in rows] == [3, 2]


def test_text_is_escaped_and_marked_up(full: Report) -> None:
    text = full.html()
    page = Page(text)
    assert "".join(page.words["h1"]) == "A <report>"
    assert "<strong>bold</strong>" in text and "<code>a test</code> &amp; others" in text
    assert [item.strip() for item in page.words["li"]] == ["first", 'second <script>alert("x")</script>']
    assert "A &amp; B" in text and "a&lt;b" in text and "a/&lt;b&gt;" in text
    report = Report("t")
    report.text("`**not bold** <b>` and **bold `code`**")
    assert "<code>**not bold** &lt;b&gt;</code>" in report.html()


def cells(report: Report) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", report.html())
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows[1:]]


def test_table_formats_aligns_and_marks_the_best() -> None:
    report = Report("t")
    nan = float("nan")
    rows = [["a", 1.0, 0.1234, -5.0], ["b", 20000, 0.12341, nan], ["c", None, 0.5, -7.0]]
    report.table(
        ["name", "n", "error", "score"], rows, formats={"error": ".3f"}, best_in_column={"error": min, "score": max}
    )
    assert cells(report) == [
        ["a", "1", "<strong>0.123</strong>", "<strong>−5</strong>"],  # noqa: RUF001
        ["b", "20,000", "<strong>0.123</strong>", "–"],  # reads the same as the best  # noqa: RUF001
        ["c", "–", "0.500", "−7"],  # noqa: RUF001
    ]
    assert re.findall(r"<th( class=\"number\")?>", report.html()) == ["", *[' class="number"'] * 3]


def test_cells_may_be_anything() -> None:
    report = Report("t")
    report.keyvalues(
        {"a": (1, 2), "b": True, "c": np.float32(0.5), "d": np.int64(7), "e": np.float32("nan"), "f": None}
    )
    assert re.findall(r"<dd>(.*?)</dd>", report.html()) == ["(1, 2)", "True", "0.5", "7", "–", "–"]  # noqa: RUF001


def test_best_in_row() -> None:
    report = Report("t")
    report.table(["p", "x", "y"], [["a", 0.9, 0.8], ["b", 0.1, 0.7], ["c", None, 0.3]], best_in_row=max)
    assert cells(report) == [
        ["a", "<strong>0.9</strong>", "0.8"],
        ["b", "0.1", "<strong>0.7</strong>"],
        ["c", "–", "0.3"],  # a lone number is no winner  # noqa: RUF001
    ]


def test_write_is_utf8_and_repeatable(full: Report, tmp_path: Path) -> None:
    path = full.write(tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8") == full.html()
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_bad_input_is_named(tmp_path: Path) -> None:
    report = Report("t")
    with pytest.raises(ValueError, match="row 1 must have 2 cells like the headers, got 3"):
        report.table(["a", "b"], [[1, 2], [1, 2, 3]])
    with pytest.raises(ValueError, match=r"'PNSR' is none of \['PSNR'\]; did you mean 'PSNR'"):
        report.table(["PSNR"], [[1.0]], formats={"PNSR": ".1f"})
    with pytest.raises(FileNotFoundError, match=r"no file at .*missing\.gif"):
        report.video(tmp_path / "missing.gif")
    with pytest.raises(ValueError, match="neither GIF nor MP4"):
        report.video(b"plain text")
    with pytest.raises(ValueError, match="damaged MP4"):
        report.video(video.encode_video(CLIP, suffix=".mp4")[:60])
    with pytest.raises(ValueError, match="not a picture"):
        report.image(b"plain text")
    with pytest.raises(ValueError, match=r"must be uint8 \(row, column, 3\), got float64 \(16, 20, 3\)"):
        report.image(CLIP[0] / 255)
    assert Page(report.html()).named("img") == []  # nothing half-added
