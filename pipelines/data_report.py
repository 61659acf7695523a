"""Stage ``data_report``: what a person should know of the prepared data, as ``reports/data.html``."""

from __future__ import annotations

from csr.data.html_report import to_html
from csr.data.prepared import PreparedSet
from csr.data.report import data_sections
from pipelines.params import Params
from pipelines.stage import PREPARED, REPORTS, run_stage


def data_report(params: Params) -> None:
    """Writes the page."""
    data = PreparedSet.open(PREPARED)
    sections = data_sections(data, params.concepts.model.stride, data.skipped(), data.notes())
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / "data.html").write_text(to_html(f"Data: {data.collection.name}", sections))


if __name__ == "__main__":
    run_stage("data_report", data_report)
