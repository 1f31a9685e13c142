"""A report in one HTML file: text, tables, figures and moving pictures, nothing loaded from elsewhere.

Everything is inside the file (pictures as `data:` URIs, its own style, no script), so that it can be mailed, archived
and opened without a network in ten years. It follows the reader's light or dark setting, fits a phone, and prints.
"""

from __future__ import annotations

import html
import io
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from worldflow.atomic import write_bytes
from worldflow.hints import did_you_mean
from worldflow.look import encode_figure
from worldflow.video import to_data_uri
from worldflow.webp import smaller_without_loss

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    Cell = object  # a number, a string, None; anything else as str() shows it
    Best = Callable[[Iterable[float]], float]

__all__ = ["Report"]


class Report:
    """A report that grows from top to bottom; each method adds one piece.

    Pictures that follow each other share a line where they fit. All text is escaped: what a data set's name or an
    error message holds cannot become markup.

    Args:
        title: Heading of the page.
        subtitle: A line below it.

    Example:
        >>> report = Report("Pendulum", "trained on 40 episodes")
        >>> report.text("The model beats **copying the last frame** at every horizon.")
        >>> report.table(["method", "PSNR"], [["model", 31.2], ["copy last", 24.0]], best_in_column={"PSNR": max})
        >>> "<strong>31.2</strong>" in report.html()
        True
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._sections: list[str] = []
        self._blocks: list[tuple[bool, str]] = []  # whether it is a picture, and its markup

    def section(self, title: str) -> None:
        """Begin a section; with three or more, the report opens with links to them."""
        self._sections.append(title)
        self._add(f'<h2 id="section-{len(self._sections)}">{_escape(title)}</h2>')

    def text(self, text: str) -> None:
        """Add paragraphs, parted by blank lines; lines that all begin with `- ` are a list.

        Args:
            text: Plain text, with `**bold**` and `` `code` ``.
        """
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            lines = [line.strip() for line in paragraph.strip().splitlines()]
            if lines and all(line.startswith("- ") for line in lines):
                self._add("<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>")
            elif lines:
                self._add(f"<p>{_inline(' '.join(lines))}</p>")

    def headline(self, values: Mapping[str, Cell], *, formats: Mapping[str, str] | None = None) -> None:
        """Add a few numbers in large type, each over its name.

        Args:
            values: From name to value.
            formats: From name to a format specification such as `.1f`; `.3g` by default.
        """
        tiles = (
            f"<div><b>{_escape(_cell(value, _format(formats, name, values)))}</b><span>{_escape(name)}</span></div>"
            for name, value in values.items()
        )
        self._add(f'<div class="headline">{"".join(tiles)}</div>')

    def keyvalues(self, values: Mapping[str, Cell], *, formats: Mapping[str, str] | None = None) -> None:
        """Add names and values in two columns, as for settings.

        Args:
            values: From name to value.
            formats: From name to a format specification; `.3g` by default.
        """
        rows = (
            f"<dt>{_escape(name)}</dt><dd>{_escape(_cell(value, _format(formats, name, values)))}</dd>"
            for name, value in values.items()
        )
        self._add(f"<dl>{''.join(rows)}</dl>")

    def table(
        self,
        headers: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        *,
        caption: str = "",
        formats: Mapping[str, str] | None = None,
        best_in_row: Best | None = None,
        best_in_column: Mapping[str, Best] | None = None,
    ) -> None:
        """Add a table; numbers stand right, what is missing (None or NaN) is a dash, the best is bold.

        Args:
            headers: One a column.
            rows: Cells, as many as headers each.
            caption: Above the table.
            formats: From header to a format specification such as `.2f`; `.3g` by default.
            best_in_row: `max` or `min`: which number of each row is bold.
            best_in_column: From header to `max` or `min`: which number of that column is bold. Numbers that read the
                same are bold together.

        Raises:
            ValueError: If a row is longer or shorter than the headers, or a name is none of them.
        """
        for number, row in enumerate(rows):
            if len(row) != len(headers):
                raise ValueError(f"row {number} must have {len(headers)} cells like the headers, got {len(row)}")
        for name in best_in_column or {}:
            _check_name(name, headers)
        specs = [_format(formats, header, headers) for header in headers]
        shown = [[_cell(cell, spec) for cell, spec in zip(row, specs, strict=True)] for row in rows]
        bold = [[False] * len(headers) for _ in rows]
        groups = [[(i, j) for j in range(len(headers))] for i in range(len(rows))] if best_in_row else []
        picks = [best_in_row] * len(groups)
        for name, pick in (best_in_column or {}).items():
            groups.append([(i, list(headers).index(name)) for i in range(len(rows))])
            picks.append(pick)
        for places, pick in zip(groups, picks, strict=True):
            known = {place: number for place in places if (number := _number(rows[place[0]][place[1]])) is not None}
            if pick and len(known) > 1:
                best = pick(known.values())
                i, j = next(place for place, number in known.items() if number == best)
                for k, m in known:
                    bold[k][m] = bold[k][m] or shown[k][m] == shown[i][j]
        is_number = [
            all(_number(row[j]) is not None or _cell(row[j], _PLAIN) == _cell(None, _PLAIN) for row in rows)
            for j in range(len(headers))
        ]
        kinds = [' class="number"' if flag else "" for flag in is_number]
        head = "".join(f"<th{kind}>{_inline(header)}</th>" for header, kind in zip(headers, kinds, strict=True))
        body = ""
        for i, row in enumerate(shown):
            cells = (f"<strong>{_escape(cell)}</strong>" if bold[i][j] else _inline(cell) for j, cell in enumerate(row))
            body += "<tr>" + "".join(f"<td{k}>{c}</td>" for k, c in zip(kinds, cells, strict=True)) + "</tr>"
        title = f"<caption>{_inline(caption)}</caption>" if caption else ""
        self._add(
            f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def figure(self, figure: Figure, caption: str = "") -> None:
        """Add a matplotlib figure, as vectors; one that holds pictures, as pixels.

        Args:
            figure: The figure.
            caption: Below it.
        """
        has_pictures = any(axes.get_images() and max(axes.get_images()[0].get_size()) > 64 for axes in figure.axes)
        uri = to_data_uri(smaller_without_loss(encode_figure(figure, suffix=".png" if has_pictures else ".svg")))
        width = round(figure.get_size_inches()[0] * 96)  # CSS counts 96 pixels an inch
        self._picture(f'<img src="{uri}" alt="{_escape(caption)}" width="{width}">', caption, width=width)

    def image(self, source: np.ndarray | bytes | str | os.PathLike[str], caption: str = "") -> None:
        """Add a picture.

        Args:
            source: Pixels `uint8 (row, column, 3)`, or the bytes or path of a PNG, JPEG or GIF file.
            caption: Below it.

        Raises:
            ValueError: If it is not a picture.
        """
        if not isinstance(source, (bytes, str, os.PathLike)):
            buffer = io.BytesIO()
            try:
                Image.fromarray(source).save(buffer, format="PNG")
            except (TypeError, AttributeError) as error:
                shape, dtype = getattr(source, "shape", None), getattr(source, "dtype", type(source))
                message = f"a picture must be uint8 (row, column, 3), got {dtype} {shape}"
                raise ValueError(message) from error
            source = buffer.getvalue()
        data = _bytes(source)
        try:
            width = Image.open(io.BytesIO(data)).width
            data = smaller_without_loss(data)
        except OSError as error:
            raise ValueError(f"not a picture: {_name(source)}; pass a PNG, JPEG or GIF file") from error
        self._picture(f'<img src="{to_data_uri(data)}" alt="{_escape(caption)}" width="{width}">', caption, width=width)

    def video(self, source: bytes | str | os.PathLike[str], caption: str = "") -> None:
        """Add a moving picture that plays by itself, over and over, without sound.

        Args:
            source: Bytes or path of a GIF or MP4 file.
            caption: Below it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is neither GIF nor MP4.
        """
        import av
        import av.error

        data = _bytes(source)
        if data[4:8] != b"ftyp":
            if not data.startswith(b"GIF8"):
                raise ValueError(f"neither GIF nor MP4: {_name(source)}; write it with worldflow.video.write_video")
            self.image(data, caption)
            return
        try:
            with av.open(io.BytesIO(data)) as container:
                width = container.streams.video[0].width
        except (av.error.FFmpegError, IndexError) as error:
            raise ValueError(f"damaged MP4: {_name(source)} ({error}); write it again") from error
        self._picture(
            f'<video src="{to_data_uri(data)}" aria-label="{_escape(caption)}" width="{width}"'
            " autoplay loop muted playsinline></video>",
            caption,
            width=width,
        )

    def html(self) -> str:
        """The page."""
        parts: list[str] = []
        was_picture = False
        for is_picture, block in self._blocks:
            if is_picture != was_picture:
                parts.append('<div class="pictures">' if is_picture else "</div>")
            parts.append(block)
            was_picture = is_picture
        if was_picture:
            parts.append("</div>")
        links = "".join(f'<a href="#section-{k}">{_escape(title)}</a>' for k, title in enumerate(self._sections, 1))
        contents = f"<nav>{links}</nav>" if len(self._sections) >= 3 else ""
        subtitle = f'<p class="subtitle">{_inline(self.subtitle)}</p>' if self.subtitle else ""
        body = "\n".join(parts)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{_escape(self.title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
            f"<header><h1>{_escape(self.title)}</h1>{subtitle}{contents}</header>\n{body}\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, whole or not at all.

        Args:
            path: The file; missing parent folders are made.

        Returns:
            `path` as a `Path`.
        """
        return write_bytes(path, self.html().encode("utf-8"))

    def _add(self, block: str) -> None:
        self._blocks.append((False, block))

    def _picture(self, markup: str, caption: str, *, width: int) -> None:
        text = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
        self._blocks.append((True, f'<figure style="width:{width + 2 * _PADDING}px">{markup}{text}</figure>'))


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _inline(text: str) -> str:
    """Escaped text with bold and code; markup is looked for outside of code only."""
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(
        f"<code>{_escape(piece[1:-1])}</code>"
        if k % 2
        else re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", _escape(piece))
        for k, piece in enumerate(pieces)
    )


def _number(cell: object) -> float | None:
    """The cell's value where it is a number one can compare; NumPy's count."""
    if isinstance(cell, numbers.Real) and not isinstance(cell, bool) and not math.isnan(cell):
        return float(cell)
    return None


def _cell(cell: object, spec: str) -> str:
    number = _number(cell)
    if number is None:
        is_missing = cell is None or (isinstance(cell, numbers.Real) and not isinstance(cell, bool))
        return "–" if is_missing else str(cell)  # noqa: RUF001
    is_whole = spec == _PLAIN and number.is_integer() and abs(number) < 1e15
    return format(number, ",.0f" if is_whole else spec).replace("-", "−")  # noqa: RUF001


def _format(formats: Mapping[str, str] | None, name: str, names: Iterable[str]) -> str:
    for given in formats or {}:
        _check_name(given, names)
    return (formats or {}).get(name, _PLAIN)


def _check_name(name: str, names: Iterable[str]) -> None:
    known = list(names)
    if name not in known:
        hint = did_you_mean(name, known, otherwise="")
        raise ValueError(f"{name!r} is none of {known}{hint}")


def _bytes(source: bytes | str | os.PathLike[str]) -> bytes:
    if isinstance(source, bytes):
        return source
    if not Path(source).is_file():
        raise FileNotFoundError(f"no file at {source} to embed")
    return Path(source).read_bytes()


def _name(source: bytes | str | os.PathLike[str]) -> str:
    return f"{len(source)} bytes that begin {source[:8]!r}" if isinstance(source, bytes) else str(source)


_PLAIN = ".3g"
_PADDING = 12  # of a picture's card, in CSS pixels
_CSS = f"""
:root {{ color-scheme: light dark; --ink: #1f2937; --faint: #6b7280; --line: #e5e7eb; --paper: #fff; --card: #fff;
  --soft: #f6f7f9; --link: #0060a0; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e5e7eb; --faint: #9ca3af; --line: #343a46; --paper: #14171d;
  --card: #fff; --soft: #1d212a; --link: #6cb6ea; }} }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }}
main {{ max-width: 960px; margin: 0 auto; padding: 48px 24px 80px; }}
header {{ border-bottom: 1px solid var(--line); padding-bottom: 20px; margin-bottom: 28px; }}
h1 {{ font-size: 30px; line-height: 1.2; letter-spacing: -0.015em; margin: 0; }}
h2 {{ font-size: 20px; line-height: 1.3; letter-spacing: -0.005em; margin: 48px 0 12px; }}
p, ul {{ max-width: 70ch; margin: 12px 0; }}
ul {{ padding-left: 1.3em; }}
.subtitle {{ color: var(--faint); margin: 8px 0 0; max-width: none; }}
nav {{ display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 16px; font-size: 14px; }}
a {{ color: var(--link); text-decoration: none; }}
a:hover {{ text-decoration: underline; }}
code {{ font: 0.88em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; background: var(--soft);
  padding: 0.1em 0.35em; border-radius: 4px; }}
.headline {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0; }}
.headline div {{ background: var(--soft); border-radius: 8px; padding: 14px 16px; }}
.headline b {{ display: block; font-size: 26px; line-height: 1.2; font-weight: 650; letter-spacing: -0.01em;
  font-variant-numeric: tabular-nums; }}
.headline span {{ color: var(--faint); font-size: 13.5px; line-height: 1.35; display: block; margin-top: 4px; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 4px 24px; margin: 16px 0; font-size: 15px; }}
dt {{ color: var(--faint); }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
.scroll {{ overflow-x: auto; margin: 20px 0; }}
table {{ border-collapse: collapse; font-size: 15px; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; color: var(--faint); font-size: 14px; padding-bottom: 8px; }}
th, td {{ padding: 6px 18px; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }}
th:first-child, td:first-child {{ padding-left: 2px; }}
th {{ font-weight: 600; font-size: 14px; border-bottom: 1.5px solid var(--faint); }}
.number {{ text-align: right; }}
.pictures {{ display: flex; flex-wrap: wrap; gap: 20px; margin: 20px 0; align-items: flex-start; }}
figure {{ margin: 0; max-width: 100%; }}
figure img, figure video {{ display: block; max-width: 100%; height: auto; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: {_PADDING}px; width: 100%; }}
figcaption {{ color: var(--faint); font-size: 14px; line-height: 1.45; margin-top: 8px; }}
@media (max-width: 560px) {{ main {{ padding: 28px 16px 48px; }} h1 {{ font-size: 25px; }}
  dl {{ grid-template-columns: 1fr; gap: 0; }} dd {{ margin-bottom: 8px; }} }}
@media print {{ :root {{ --ink: #000; --faint: #444; --line: #ccc; --paper: #fff; --card: #fff; --soft: #f4f4f4; }}
  main {{ max-width: none; padding: 0; }} nav {{ display: none; }} h2 {{ break-after: avoid; }}
  figure, table, .headline {{ break-inside: avoid; }} }}
"""
