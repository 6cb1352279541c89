"""What a person reads of a comparison: summary.md, figures, report.html."""

from pathlib import Path

from attnconv.report.text import findings, markdown, table
from attnconv.report.values import Summary

__all__ = ["findings", "table", "write"]


def write(summary: Summary, out: Path) -> None:
    """Writes summary.md, the figures as SVG and report.html into the folder `out`.

    Args:
      summary: what `study` wrote as summary.json.
      out: a folder that exists; files of an earlier report are replaced.
    """
    from attnconv.report import figures, page  # what draws takes as long to import as all the rest

    (out / "summary.md").write_text(markdown(summary), encoding="utf-8")
    figures.write(summary, out)
    page.write(summary, out / "report.html")
