"""A run's folder as one page for a reader with ten minutes: report.html.

run.py reads the folder; headline.py says the outcome; tables.py, sections.py, gallery.py and provenance.py
make the parts, plots.py and curves.py the figures; page.py puts them together; markup.py escapes all of it.
"""

from lite_medrl.tools.report.page import figures, write_report

__all__ = ["figures", "write_report"]
