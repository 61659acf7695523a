"""The model card of a version, filled from the bundle and what it was judged by.

In the form of Google's Model Card Toolkit, schema 0.0.2 (Mitchell et al. 2019, "Model Cards for Model Reporting"), as
JSON, and as Markdown for people. What only the people who deploy a model can say, such as who owns it, is left out
rather than made up: they add it to ``infra/model_card.yaml``, which is laid over the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from csr.bundle.format import Bundle
from csr.errors import ConfigError
from pipelines.promotion.verdicts import Verdict

OWN = Path("infra/model_card.yaml")
SCHEMA = "0.0.2"
_PAPER = "Concept-based similarity reasoning (CSR), CVPR 2025"


def write_card(
    folder: Path, bundle: Bundle, version: str, date: str, judged_on: str, verdicts: Sequence[Verdict]
) -> None:
    """Writes ``model_card.json`` and ``model_card.md``.

    Args:
        version: in the registry.
        date: of the decision, as ``2026-11-30``.
        judged_on: a sentence on the judging set.

    Raises:
        ConfigError: ``infra/model_card.yaml`` is not of the card's form.
    """
    card = laid_over(model_card(bundle, version, date, judged_on, verdicts), own_part())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    (folder / "model_card.md").write_text("\n".join(_markdown(card)) + "\n")


def model_card(bundle: Bundle, version: str, date: str, judged_on: str, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The card as the schema wants it."""
    about, profile = bundle.manifest, bundle.profile()
    made_of = f"bundle {bundle.digest[:12]}, code {about.code_revision}"
    several = "any number of" if about.task == "multilabel" else "one of"
    metrics = [
        {"type": each.measure, "value": round(each.candidate.mean, 6), "slice": each.where}
        for each in verdicts
        if each.candidate is not None and each.candidate.mean == each.candidate.mean
    ]
    terms = "; ".join(
        f"{name}: {', '.join(said)}"
        for name, said in (("modality", profile.modality), ("body part", profile.body_part), ("view", profile.view))
        if said
    )
    return {
        "schema_version": SCHEMA,
        "model_details": {
            "name": "csr",
            "overview": f"Says which of {len(about.concepts)} named concepts an image shows, where and like which "
            f"training image, and from them {several} {len(about.classes)} classes.",
            "documentation": f"Concepts: {', '.join(about.concepts)}. Classes: {', '.join(about.classes)}.",
            "version": {"name": version, "date": date, "diff": made_of},
            "citations": [{"style": "text", "citation": _PAPER}],
        },
        "model_parameters": {
            "model_architecture": f"{about.backbone}, concept maps of {about.height}×{about.width} cells, up to "
            f"{about.per_concept} prototypes a concept, preset {about.preset}",
            "data": [
                {
                    "name": about.data,
                    "description": f"training and validation, {profile.images} images, digest {about.data_digest[:12]}"
                    + (f"; {terms}" if terms else ""),
                },
                {"name": "judging set", "description": judged_on},
            ],
            "input_format": f"an image, shown to the network as {about.channels}×{about.side}×{about.side}",
            "output_format": "probabilities of concepts and classes, similarity maps, and the training studies that "
            "each prototype resembles",
        },
        "quantitative_analysis": {"performance_metrics": metrics},
        "considerations": {
            "users": [{"description": "Researchers, and clinicians who take part in research."}],
            "use_cases": [{"description": "Research on explanations that a reader can correct. No diagnosis."}],
            "limitations": [
                {"description": "Images unlike the training images are answered with a doubt; the guard that finds "
                 f"them also doubts {profile.flagged:.1%} of good images."},
                {"description": "Findings that are none of the concepts are not seen."},
            ],
            "tradeoffs": [
                {"description": "The classes rest on the concepts alone: what these do not say cannot be learned."}
            ],
            "ethical_considerations": [
                {"name": "A reader may trust an explanation that is wrong.",
                 "mitigation_strategy": "Every prediction shows where it comes from, and can be corrected, signed "
                 "and replayed; the model asks for help where it is unsure."}
            ],
        },
    }  # fmt: skip


def own_part(file: Path = OWN) -> dict[str, Any]:
    """What the people who deploy the model say of it; nothing if they say nothing.

    Raises:
        ConfigError: the file is not a mapping of the card's sections.
    """
    if not file.is_file():
        return {}
    content = yaml.safe_load(file.read_text()) or {}
    known = {"model_details", "model_parameters", "quantitative_analysis", "considerations"}
    if not isinstance(content, dict) or not set(content) <= known:
        raise ConfigError(f"{file}: must hold sections of a model card: {', '.join(sorted(known))}")
    return content


def laid_over(card: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Lists grow, other values are replaced."""
    result = dict(card)
    for key, value in own.items():
        there = result.get(key)
        if isinstance(there, dict) and isinstance(value, dict):
            result[key] = laid_over(there, value)
        elif isinstance(there, list) and isinstance(value, list):
            result[key] = [*there, *value]
        else:
            result[key] = value
    return result


def _markdown(card: Mapping[str, Any]) -> Iterator[str]:
    details, parameters = card["model_details"], card["model_parameters"]
    yield f"# Model card: {details['name']}, version {details['version']['name']}"
    yield ""
    yield f"{details['overview']} {details['documentation']}"
    yield ""
    yield f"Judged on {details['version']['date']}; {details['version']['diff']}. {parameters['model_architecture']}."
    for heading, rows in (
        ("Data", [f"**{each['name']}**: {each['description']}" for each in parameters["data"]]),
        *((name.replace("_", " ").capitalize(), [_sentence(each) for each in rows])
          for name, rows in card["considerations"].items()),
    ):  # fmt: skip
        yield from ("", f"## {heading}", "", *(f"- {row}" for row in rows))
    yield from ("", "## Performance", "", "| measure | where | value |", "|---|---|---|")
    for each in card["quantitative_analysis"]["performance_metrics"]:
        yield f"| {each['type']} | {each.get('slice', '')} | {each['value']:.4g} |"


def _sentence(entry: Mapping[str, str]) -> str:
    return entry["description"] if "description" in entry else f"{entry['name']} {entry['mitigation_strategy']}"
