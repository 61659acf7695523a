"""What Prometheus may know of a server: numbers and names of a fixed set, nothing of a patient.

Every metric is a private attribute of `Metrics`; who measures calls a method that says what happened. Labels take their
values from the sets below, from routes' templates, from the codes of `serving.errors`, and from the served bundles'
concepts, classes and versions; never from a request's content.

Several processes on one node: whoever starts them gives each the environment variable ``PROMETHEUS_MULTIPROC_DIR``, a
folder emptied by `prepare_folder`, and nothing else that uses prometheus_client may see it. Each process then writes
its numbers to files there and `render` in any of them adds them up. A process that has died must be taken out by
`forget_process`, or what it last held (its cache, its requests in progress) counts for ever.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client import generate_latest as to_text
from prometheus_client import values as value_kinds
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from csr.bundle.profile import ReasonCode
from csr.errors import ConfigError
from serving.errors import ServingError
from serving.interfaces.schemas import Fits, InteractionRequest

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
NODE_LABEL = "node"
DIGEST_CHARACTERS = 12  # of a digest, wherever telemetry names one
Step = Literal["decode", "load", "wait", "encode", "reason", "explain", "assess", "draw", "record", "read"]
InteractionKind = Literal["none", "boxes", "answers", "both"]
Role = Literal["champion", "challenger"]
Denial = Literal["unauthenticated", "forbidden"]
DicomOperation = Literal["search", "retrieve", "store"]

_STEP_BUCKETS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds
_REQUEST_BUCKETS = (*_STEP_BUCKETS[3:], 30)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_FIT_BUCKETS = (-0.5, 0, 0.25, 0.5, 0.75, 1, 1.5, 2, 4, 8, 16)


def render(registry: CollectorRegistry | None = None) -> tuple[bytes, str]:
    """The page that Prometheus reads and its content type: of all processes of this node, or of ``registry``."""
    return page(collect(registry or REGISTRY))


def collect(registry: CollectorRegistry) -> list[Metric]:
    """The numbers of all processes of this node; of ``registry`` where there is but one."""
    if FOLDER_VARIABLE in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return list(registry.collect())


def page(numbers: Iterable[Metric]) -> tuple[bytes, str]:
    """Numbers as Prometheus reads them, and their content type."""
    registry = CollectorRegistry()
    registry.register(_Collected(numbers))
    return to_text(registry), CONTENT_TYPE_LATEST


def labelled(label: str, numbers: Mapping[str, Iterable[Metric]]) -> list[Metric]:
    """The numbers of several places as one list, each sample with one more label, which names its place."""
    merged: dict[str, Metric] = {}
    for place, families in sorted(numbers.items()):
        for family in families:
            whole = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            whole.samples += [each._replace(labels={**each.labels, label: place}) for each in family.samples]
    return list(merged.values())


class _Collected(Collector):
    """Numbers that were collected already."""

    def __init__(self, numbers: Iterable[Metric]) -> None:
        self._numbers = list(numbers)

    def collect(self) -> Iterable[Metric]:
        return self._numbers


def prepare_folder(folder: Path) -> None:
    """Makes the folder for `FOLDER_VARIABLE`, and removes what an earlier run left; before any process starts."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file in folder.glob("*.db"):
        file.unlink()


def forget_process(pid: int) -> None:
    """Takes out what a dead process held; its counts stay. Without a folder there is nothing to take out."""
    if FOLDER_VARIABLE in os.environ:
        mark_process_dead(pid)


def forget_dead_processes() -> None:
    """`forget_process` for every process that wrote into the folder and is not alive; for whoever comes after one."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        written = {file.stem.rpartition("_")[2] for file in Path(folder).glob("*_*.db")}
        for pid in written:
            if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
                forget_process(int(pid))


class Metrics:
    """Everything that is measured. Thread-safe; one a process, and only in processes that serve.

    Args:
        registry: where to register; tests bring their own.

    Raises:
        ConfigError: `FOLDER_VARIABLE` came too late to have an effect.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        if (FOLDER_VARIABLE in os.environ) != value_kinds.ValueClass._multiprocess:
            raise ConfigError(
                f"{FOLDER_VARIABLE}: was changed after prometheus_client was imported; set it in the environment that "
                "the process is started with"
            )
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self._requests = histogram(
            "csr_request_seconds",
            "Requests and their latency.",
            ("route", "method", "status"),
            buckets=_REQUEST_BUCKETS,
        )
        self._in_progress = gauge("csr_requests_in_progress", "Requests being answered.", multiprocess_mode="livesum")
        self._refusals = counter("csr_refusals_total", "Requests refused, by the error's code.", ("code",))
        self._rate_limited = counter("csr_rate_limited_total", "Requests over their key's or address's limit.")
        denied = counter(
            "csr_unauthorised_total", "Requests without a valid key, or one without the role.", ("reason",)
        )
        self._denied = {reason: denied.labels(reason) for reason in get_args(Denial)}

        steps = histogram("csr_step_seconds", "Latency of a step of an answer.", ("step",), buckets=_STEP_BUCKETS)
        self._steps = {step: steps.labels(step) for step in get_args(Step)}
        self._batches = histogram("csr_encoder_batch_images", "Images encoded at once.", buckets=_BATCH_BUCKETS)
        lookups = counter("csr_feature_cache_lookups_total", "Look-ups of encoded studies.", ("outcome",))
        self._hits, self._misses = lookups.labels("hit"), lookups.labels("miss")
        self._cache_bytes = gauge(
            "csr_feature_cache_bytes", "Size of the encoded studies in memory.", multiprocess_mode="livesum"
        )
        self._cache_entries = gauge(
            "csr_feature_cache_entries", "Encoded studies in memory.", multiprocess_mode="livesum"
        )

        model = ("version", "top")
        self._predictions = counter("csr_predictions_total", "Predictions, by the most probable class.", model)
        self._abstentions = counter("csr_abstentions_total", "Predictions that abstain.", ("version",))
        self._help = counter("csr_help_requests_total", "Predictions that ask a reader for help.", ("version",))
        self._misfits = counter("csr_misfits_total", "Predictions on images unlike the training images.")
        reasons = counter("csr_misfit_reasons_total", "Why images did not fit; one can have several.", ("reason",))
        self._reasons = {code: reasons.labels(code) for code in get_args(ReasonCode)}
        self._fit = histogram("csr_fit_score", "How unlike the training images; 1 is the limit.", buckets=_FIT_BUCKETS)
        self._fit_drift = gauge("csr_fit_drift", "PSI of the fit score.", multiprocess_mode="liveall")
        interactions = counter("csr_interactions_total", "Interactions, by what they hold.", ("kind",))
        self._interactions = {kind: interactions.labels(kind) for kind in get_args(InteractionKind)}
        flips = counter("csr_interaction_flips_total", "Interactions that changed the decision.", ("kind",))
        self._flips = {kind: flips.labels(kind) for kind in get_args(InteractionKind)}
        # Not the largest of all processes but each one's: where it is undefined it is NaN, which a maximum would keep.
        self._drift = gauge(
            "csr_concept_drift", "PSI of a concept's probabilities.", ("concept",), multiprocess_mode="liveall"
        )

        self._appends = histogram("csr_ledger_append_seconds", "Latency of recording.", buckets=_STEP_BUCKETS)
        self._append_failures = counter("csr_ledger_failures_total", "Records that could not be written.")

        self._ready = gauge(
            "csr_ready", "1 if the model has passed its checks in every process.", multiprocess_mode="livemin"
        )
        self._model = gauge(
            "csr_model_info",
            "1 for a bundle that is served.",
            ("role", "version", "digest"),
            multiprocess_mode="livemax",
        )
        self._served: dict[Role, tuple[str, str]] = {}
        self._rollouts = counter("csr_rollouts_total", "Changes of the served model.")
        self._rollout_refusals = counter(
            "csr_rollout_refusals_total", "Models that were not served for being at fault."
        )
        self._compared = counter("csr_challenger_comparisons_total", "Studies that champion and challenger judged.")
        self._disagreed = counter("csr_challenger_disagreements_total", "Of these, those they decide differently.")
        self._dropped = counter("csr_challenger_dropped_total", "Studies that the challenger had no time for.")

        dicom = histogram("csr_dicom_seconds", "Latency of the DICOM node.", ("operation",), buckets=_REQUEST_BUCKETS)
        self._dicom = {operation: dicom.labels(operation) for operation in get_args(DicomOperation)}
        failures = counter("csr_dicom_failures_total", "Failed calls of the DICOM node.", ("operation",))
        self._dicom_failures = {operation: failures.labels(operation) for operation in get_args(DicomOperation)}

    def request_began(self) -> None:
        self._in_progress.inc()

    def request_ended(self, route: str, method: str, status: int, seconds: float) -> None:
        """Args:
        route: the route's template, never the path. method: one of a fixed set.
        """
        self._in_progress.dec()
        self._requests.labels(route, method, str(status)).observe(seconds)

    def refused(self, error: ServingError) -> None:
        """A request was not answered, for a reason that a client can understand."""
        self._refusals.labels(error.code).inc()

    def rate_limited(self) -> None:
        self._rate_limited.inc()

    def unauthorised(self, reason: Denial) -> None:
        self._denied[reason].inc()

    def step(self, step: Step, seconds: float) -> None:
        self._steps[step].observe(seconds)

    def batch_encoded(self, images: int) -> None:
        self._batches.observe(images)

    def cache_lookup(self, hit: bool) -> None:
        (self._hits if hit else self._misses).inc()

    def cache_size(self, entries: int, size_bytes: int) -> None:
        """What this process holds now."""
        self._cache_entries.set(entries)
        self._cache_bytes.set(size_bytes)

    def predicted(self, version: str, top: str, abstains: bool, asks_for_help: bool) -> None:
        """A study was predicted, without interaction.

        Args:
            version: of the model. top: its most probable class.
        """
        self._predictions.labels(version, top).inc()
        self._abstentions.labels(version).inc(int(abstains))
        self._help.labels(version).inc(int(asks_for_help))

    def judged(self, fits: Fits) -> None:
        """An image was compared with the training images, to be predicted or to be refused."""
        self._fit.observe(fits.score)
        self._misfits.inc(int(bool(fits.reasons)))
        for reason in fits.reasons:
            self._reasons[reason.code].inc()

    def fit_drift(self, value: float | None) -> None:
        """The index of the fit score, as `concept_drift`."""
        self._fit_drift.set(math.nan if value is None else value)

    def interacted(self, interaction: InteractionRequest, flipped: bool) -> None:
        """An interaction was applied; ``flipped`` if the decision is another one with it."""
        kind = _kind(interaction)
        self._interactions[kind].inc()
        self._flips[kind].inc(int(flipped))

    def concept_drift(self, values: Mapping[str, float | None]) -> None:
        """The indices of `serving.telemetry.drift.ConceptDrift.values`; a concept of an earlier model: None."""
        for concept, value in values.items():
            self._drift.labels(concept).set(math.nan if value is None else value)

    def ledger_appended(self, seconds: float) -> None:
        self._appends.observe(seconds)

    def ledger_failed(self) -> None:
        self._append_failures.inc()

    def ready(self, ready: bool) -> None:
        self._ready.set(int(ready))

    def model_served(self, role: Role, version: str, digest: str) -> None:
        """This process serves a bundle in this role from now on, and no other."""
        self.model_withdrawn(role)
        self._served[role] = (version, digest[:DIGEST_CHARACTERS])
        self._model.labels(role, *self._served[role]).set(1)

    def model_withdrawn(self, role: Role) -> None:
        """This process serves no bundle in this role any more."""
        if before := self._served.pop(role, None):
            self._model.labels(role, *before).set(0)

    def rolled_out(self) -> None:
        self._rollouts.inc()

    def rollout_refused(self) -> None:
        self._rollout_refusals.inc()

    def challenger_compared(self, agrees: bool) -> None:
        self._compared.inc()
        self._disagreed.inc(int(not agrees))

    def challenger_dropped(self) -> None:
        self._dropped.inc()

    def dicom(self, operation: DicomOperation, seconds: float) -> None:
        self._dicom[operation].observe(seconds)

    def dicom_failed(self, operation: DicomOperation) -> None:
        self._dicom_failures[operation].inc()


def _kind(interaction: InteractionRequest) -> InteractionKind:
    answers = interaction.confirmed or interaction.rejected
    if interaction.boxes:
        return "both" if answers else "boxes"
    return "answers" if answers else "none"
