"""Archives that speak DICOMweb, named in the configuration; nobody's request names an address.

Searches (QIDO-RS), fetches (WADO-RS) and stores (STOW-RS) through dicomweb-client. Here is what keeps that safe: time
and size of every answer are bounded (`serving.dicom.bounded`), redirects are not followed, nothing is tried twice,
identifiers are checked before they get into an address, and the environment's proxies and .netrc play no part.

Concurrency: a `Node` may be used by any number of threads; each call has its own connection and reads its secrets
anew, so that they can be rotated without a restart.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pydicom
import requests
import urllib3
from dicomweb_client import DICOMwebClient

from csr.errors import ConfigError
from serving.dicom.bounded import BoundedAdapter
from serving.dicom.deidentify import UID_PATTERN
from serving.dicom.node_config import NodeConfig
from serving.errors import (
    InvalidDicomQueryError,
    NodeError,
    NodeStoreError,
    ServingError,
    UnknownInstanceError,
)

ANSWER_BYTES = 64 << 20
MAX_RESULTS = 500
_UNCHUNKED = 1 << 40  # bytes up to which dicomweb-client sends a body with its length, which any server takes
_PATIENT_ID = re.compile(r"[^\\*?\x00-\x1f\x7f]{1,64}")  # LO; no wildcards
_DATE = re.compile(r"[0-9]{8}|[0-9]{8}-|-[0-9]{8}|[0-9]{8}-[0-9]{8}")
_ACCESSION = re.compile(r"[^\\*?\x00-\x1f\x7f]{1,16}")  # SH; no wildcards
_MODALITY = re.compile(r"[A-Z0-9_ ]{1,16}")


@dataclass(frozen=True)
class Query:
    """What to search for; at least one of these.

    Args:
        study_uid: of one study.
        patient_id: one patient's, without wildcards.
        study_date: ``YYYYMMDD``, or a range with a hyphen, which may be open at one end.
        modality: for example ``DX``.
        accession_number: of one order, without wildcards.

    Raises:
        InvalidDicomQueryError: a value is not of its form, or there is none.
    """

    study_uid: str | None = None
    patient_id: str | None = None
    study_date: str | None = None
    modality: str | None = None
    accession_number: str | None = None

    def __post_init__(self) -> None:
        if self.study_uid is not None:
            _check_uid("study_uid", self.study_uid)
        forms = {
            "patient_id": _PATIENT_ID,
            "study_date": _DATE,
            "modality": _MODALITY,
            "accession_number": _ACCESSION,
        }
        for field, form in forms.items():
            value = getattr(self, field)
            if value is not None and not form.fullmatch(value):
                raise InvalidDicomQueryError(f"{field}: is not a value that a DICOM archive can be searched for")
        if all(getattr(self, field) is None for field in ("study_uid", *forms)):
            raise InvalidDicomQueryError(
                "name a study, accession number, patient, date or modality: an archive is too large to list"
            )


class Node:
    """One archive.

    Args:
        name: as in the configuration.
        config: how to reach it.
        answer_bytes: the largest answer that is taken.

    Raises:
        ConfigError: a secret that the configuration names is missing.
    """

    def __init__(self, name: str, config: NodeConfig, answer_bytes: int = ANSWER_BYTES) -> None:
        self.name = name
        self._config = config
        self._answer_bytes = answer_bytes
        config.read_headers(name)

    def search(
        self, level: Literal["studies", "instances"], query: Query, limit: int = 100, offset: int = 0
    ) -> list[pydicom.Dataset]:
        """What the archive has.

        Args:
            level: one result a study, or an instance.
            query: all of it must hold.
            limit, offset: at most `MAX_RESULTS` results, from that one on, in the archive's order.

        Raises:
            InvalidDicomQueryError: limit or offset is out of range.
            NodeError: the archive does not answer, or not as it should.
        """
        if not (0 < limit <= MAX_RESULTS and offset >= 0):
            raise InvalidDicomQueryError(f"limit is from 1 to {MAX_RESULTS}, offset from 0 on")
        modality = "ModalitiesInStudy" if level == "studies" else "Modality"
        given = {
            "PatientID": query.patient_id,
            "StudyDate": query.study_date,
            "AccessionNumber": query.accession_number,
            modality: query.modality,
        }
        filters = {key: value for key, value in given.items() if value is not None}
        with self._client("search") as client:
            if level == "studies":
                if query.study_uid is not None:
                    filters["StudyInstanceUID"] = query.study_uid
                found = client.search_for_studies(limit=limit, offset=offset, search_filters=filters)
            else:
                found = client.search_for_instances(
                    study_instance_uid=query.study_uid, limit=limit, offset=offset, search_filters=filters
                )
            return [_dataset(each) for each in found[:limit]]

    def retrieve(self, study_uid: str, series_uid: str, instance_uid: str) -> bytes:
        """One instance as a DICOM file, in the transfer syntax that the archive holds it in.

        Raises:
            InvalidDicomQueryError: one of these is not a UID.
            UnknownInstanceError: the archive has no such instance.
            TooLargeError: it is over the limit of bytes.
            NodeError: the archive does not answer, or not as it should.
        """
        _check_uids(study_uid, series_uid, instance_uid)
        buffer = io.BytesIO()
        with self._client("retrieve", instance_uid) as client:
            instance = client.retrieve_instance(study_uid, series_uid, instance_uid)
            self._check_instance(instance, instance_uid)
            instance.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    def header(self, study_uid: str, series_uid: str, instance_uid: str) -> pydicom.Dataset:
        """One instance's attributes without its pixels.

        They name the patient: they are for `serving.dicom.report.structured_report`, not to keep.

        Raises:
            As `retrieve`.
        """
        _check_uids(study_uid, series_uid, instance_uid)
        with self._client("retrieve", instance_uid) as client:
            header = _dataset(client.retrieve_instance_metadata(study_uid, series_uid, instance_uid))
            self._check_instance(header, instance_uid)
        return header

    def store(self, files: Sequence[bytes]) -> None:
        """Stores DICOM files, all or with an error; those that the error does not name are stored.

        Raises:
            NodeStoreError: the archive did not confirm all of them; the text says which.
            NodeError: it does not answer, or not as it should.
        """
        datasets = [pydicom.dcmread(io.BytesIO(each)) for each in files]
        with self._client("store") as client:
            try:
                answer = client.store_instances(datasets)
            except requests.HTTPError as error:
                if error.response is None or error.response.status_code != 409:
                    raise
                # none was stored, and the body says why (PS3.18 10.5.3)
                answer = pydicom.Dataset.from_json(error.response.json())
            stored = {str(item.ReferencedSOPInstanceUID) for item in answer.get("ReferencedSOPSequence") or []}
            reasons = {
                str(item.get("ReferencedSOPInstanceUID")): f"reason {int(item.FailureReason):#06x}"
                for item in answer.get("FailedSOPSequence") or []
                if item.get("FailureReason") is not None
            }
        sent = [str(each.SOPInstanceUID) for each in datasets]
        if failed := [f"{uid} ({reasons.get(uid, 'not confirmed')})" for uid in sent if uid not in stored]:
            raise NodeStoreError(
                f"DICOM node {self.name}: did not store {len(failed)} of {len(sent)} files: {', '.join(failed)}"
            )

    def _check_instance(self, found: pydicom.Dataset, instance_uid: str) -> None:
        if found.get("SOPInstanceUID") != instance_uid:
            raise NodeError(f"DICOM node {self.name}: answers with another instance than was asked for")

    @contextmanager
    def _client(self, action: str, instance: str | None = None) -> Iterator[DICOMwebClient]:
        """A client for one call, whose errors become ours. Their texts are dropped: they quote addresses and values."""
        config = self._config
        try:
            headers = config.read_headers(self.name)
        except ConfigError as error:
            raise NodeError(str(error)) from None
        with requests.Session() as session:
            session.trust_env = False
            session.max_redirects = 0
            session.verify = str(config.ca_bundle) if config.ca_bundle is not None else config.verify
            session.headers["Accept"] = "application/dicom+json"  # for the answer to a store, which would be XML
            bounded = BoundedAdapter(self._answer_bytes, config.timeout_s)
            session.mount("http://", bounded)
            session.mount("https://", bounded)
            client = DICOMwebClient(
                config.url, session, headers=headers, timeout=config.timeout_s, chunk_size=_UNCHUNKED
            )
            client.set_http_retry_params(retry=False)
            try:
                yield client
            except ServingError:
                raise
            except requests.TooManyRedirects:
                raise NodeError(f"DICOM node {self.name}: redirects, which is not followed; correct its url") from None
            except requests.HTTPError as error:
                status = error.response.status_code if error.response is not None else None
                if status in (404, 410) and instance is not None:
                    raise UnknownInstanceError(f"DICOM node {self.name}: has no instance {instance}") from None
                raise NodeError(f"DICOM node {self.name}: refuses to {action} (status {status})") from None
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                raise NodeError(f"DICOM node {self.name}: does not answer ({type(error).__name__})") from None
            except Exception as error:  # dicomweb-client and pydicom raise many types for malformed answers
                raise NodeError(
                    f"DICOM node {self.name}: its answer cannot be understood ({type(error).__name__})"
                ) from None


def _check_uids(study_uid: str, series_uid: str, instance_uid: str) -> None:
    _check_uid("study_uid", study_uid)
    _check_uid("series_uid", series_uid)
    _check_uid("instance_uid", instance_uid)


def _check_uid(name: str, uid: str) -> None:
    if not UID_PATTERN.fullmatch(uid):
        raise InvalidDicomQueryError(f"{name}: is not a DICOM UID (digits and dots, at most 64)")


def _dataset(answer: dict[str, Any]) -> pydicom.Dataset:
    """DICOM JSON → data set; values that the archive keeps elsewhere (pixels) are left empty."""
    return pydicom.Dataset.from_json(answer, bulk_data_uri_handler=lambda _: None)
