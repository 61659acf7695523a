"""DICOM in and out: what is kept of an uploaded file, reports and pictures about it, and the archives they go to.

`deidentify` is the only way in: an allow-list, and salted identifiers. `report` and `capture` write under that
pseudonym or, given the original's header, under the real patient and study (`identity`). `nodes` talks DICOMweb to the
archives that the configuration names. Nothing here knows the data plane or this server's HTTP.
"""

from serving.dicom.deidentify import DicomSource, deidentify, pseudonymous_uid

__all__ = ["DicomSource", "deidentify", "pseudonymous_uid"]
