"""Stage ``data_report``: what a person should know of the prepared data, as ``reports/data.html``.

DVC runs it at any time after ``prepare``, also when a pass of the pipeline is over, so it is no part of an MLflow run.
"""

from __future__ import annotations

from csr.data.html_report import to_html
from csr.data.prepared import PreparedSet
from csr.data.report import data_sections
from pipelines.params import Params, load_params
from pipelines.stage import PREPARED, REPORTS, errors_for_people


def data_report(params: Params) -> None:
    """Writes the page."""
    data = PreparedSet.open(PREPARED)
    sections = data_sections(data, params.concepts.model.stride, data.skipped(), data.notes())
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / "data.html").write_text(to_html(f"Data: {data.collection.name}", sections))


if __name__ == "__main__":
    with errors_for_people("data_report"):
        data_report(load_params())
