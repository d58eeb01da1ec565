"""README says what is measured: its table is the stored result, its commands and links exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lite_medrl.measure.pool import markdown

REPO = Path(__file__).parents[1]
README = (REPO / "README.md").read_text(encoding="utf-8")


def test_the_results_table_is_the_stored_result() -> None:
    pooled = json.loads((REPO / "docs" / "results" / "quickstart.json").read_text())
    table = README.split("<!-- results:begin -->")[1].split("<!-- results:end -->")[0]
    assert markdown(pooled, device="2 CPU cores", command="make study") in table


def test_make_targets_exist() -> None:
    makefile = (REPO / "Makefile").read_text()
    targets = set(re.findall(r"^make (\w+)", README, re.M))
    assert {"quickstart", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), (
            f"README names `make {target}`, the Makefile has none"
        )


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if not link.startswith("http"):
            assert (REPO / link).exists(), link
