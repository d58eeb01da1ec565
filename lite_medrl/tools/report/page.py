"""The whole document, and its figures one by one. It opens from disk: no script, nothing is loaded.

The page's own policy forbids both, should a text of the model ever get past the escaping.
"""

from __future__ import annotations

from pathlib import Path

from lite_medrl.tools.report import plots
from lite_medrl.tools.report.gallery import gallery
from lite_medrl.tools.report.headline import paragraph, verdict
from lite_medrl.tools.report.markup import Html, join, tag
from lite_medrl.tools.report.provenance import notices, provenance_section, sources
from lite_medrl.tools.report.run import Run, read_run
from lite_medrl.tools.report.sections import (
    chances,
    decisions_section,
    groups_section,
    reach_section,
    training_section,
)
from lite_medrl.tools.report.svg import style_of
from lite_medrl.tools.report.tables import results_section
from lite_medrl.tools.report.words import BASELINES, NARROW, baseline_name, label
from lite_medrl.tools.run_folder import write_text

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(folder: Path) -> Path:
    """Makes report.html in a run's folder and returns its path.

    Raises RecipeError where the folder holds no finished run, or a file that cannot be used.
    """
    html = page(read_run(Path(folder)))
    path = Path(folder) / "report.html"
    write_text(path, html)
    return path


def figures(folder: Path) -> dict[str, str]:
    """The report's figures, each as HTML that shows by itself, say in a notebook.

    Keys: accuracy, pass_at_k, training (missing where nothing was trained), by_kind, by_modality. Raises as
    write_report.
    """
    run = read_run(Path(folder))
    drawn = {
        "accuracy": plots.accuracy(bars(run)),
        "pass_at_k": plots.pass_at_k(run.test),
        "training": training_section(run),
        "by_kind": plots.by_group(run.test, "kind", chances(run, "kind")),
        "by_modality": plots.by_group(run.test, "modality", chances(run, "modality")),
    }
    style = tag("style", css("plots.css"))
    return {name: str(tag("div", style, body, class_="lm-figure")) for name, body in drawn.items() if body}


def css(name: str) -> Html:
    """A style sheet that lies beside this file."""
    return Html(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def page(run: Run) -> Html:
    """The document."""
    title = run.recipe.report.title or f"lite-medrl run: {run.model_name} model, {run.data_name} data"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", css("plots.css"), css("page.css")),
    )
    return join([Html("<!doctype html>\n"), tag("html", head, body(run, title), lang="en"), "\n"])


def body(run: Run, title: str) -> Html:
    """Heading, links to the sections, sections, sources."""
    made = {
        "Results": results_section(run),
        "Decisions": decisions_section(run),
        "Pass@K": reach_section(run),
        "Training": training_section(run),
        "By kind": groups_section(run),
        "Gallery": gallery_section(run),
        "Provenance": provenance_section(run),
    }
    made = {name: section for name, section in made.items() if section}
    links = [tag("a", name, href=f"#{anchor(name)}") for name in made]
    parts = [tag("section", section, id=anchor(name)) for name, section in made.items()]
    return tag(
        "body",
        tag("header", *top(run, title)),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *parts),
        tag("footer", *sources(run)),
    )


def anchor(name: str) -> str:
    """Id of a section."""
    return name.lower().replace("@", "-at-").replace(" ", "-")


def top(run: Run, title: str) -> list[Html]:
    """Heading, the outcome in words, the accuracy figure, and what the reader must know first."""
    words = tag("div", tag("p", verdict(run), class_="verdict"), tag("p", paragraph(run)))
    caption = tag("figcaption", f"Test split. Whiskers: 95{NARROW}% intervals of the stages.")
    drawn = tag("figure", plots.accuracy(bars(run)), caption)
    return [
        tag("h1", title),
        tag("div", words, drawn, class_="lead"),
        tag("div", *notices(run), class_="notices"),
    ]


def bars(run: Run) -> list[plots.Bar]:
    """Rows of the accuracy figure: baselines, then stages."""
    found = [(key, run.baselines[key]) for key in BASELINES if key in run.baselines]
    return [plots.Bar(baseline_name(key, row), "reference", row["acc"], None) for key, row in found] + [
        plots.Bar(label(row["name"]), style_of(row["name"]), row["acc_at_1"], row["acc_at_1_ci95"])
        for row in run.test
    ]


def gallery_section(run: Run) -> Html | None:
    """Test images with every stage's answer; None where none are kept or wanted."""
    drawn = gallery(run.completions, [row["name"] for row in run.test], run.recipe.report.gallery_size)
    return drawn and join([tag("h2", "Gallery of test images"), drawn])
