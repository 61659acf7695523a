"""Tags by which the runs of the experiment ``csr`` are told apart."""

from __future__ import annotations

KIND = "csr.kind"  # pass, stage, sweep or trial; the comparison's runs have a tag ``comparison`` instead
