"""The feedback set: what readers signed and reviewers agreed on, on its way from serving into the next training.

It is the only thing that passes back. ``csr feedback export`` writes it from a ledger that verifies, DVC tracks it, and
stages ``prepare`` and ``head`` read it where ``data.feedback`` names it. A folder:

- ``manifest.json``: format, version (a digest of all that follows), the rule by which conflicts are resolved, counts,
  the ledger's last entry that is in it, and every file's SHA-256;
- ``readings.parquet``: one row a study and reader, `csr.data.feedback.rows.Reading`: the last that the reader signed;
- ``labels.parquet``: what they come to, `csr.data.feedback.rows.Label`, by `csr.data.feedback.consensus`;
- ``reviews.parquet``: one row a prototype, `csr.data.feedback.rows.PrototypeReview`: what reviewers agreed on;
- ``images/<digest>.png``: the studies as the network saw them, named by the digest of their pixels.

The same ledger gives the same bytes, and so does one that grew by what is not feedback. `csr.data.feedback.joining`
brings it into a prepared set. Torch-free.

De-identified: readers are pseudonyms, comments stay in the ledger, times are months, and of a study there is nothing
but pixels and their digest. Not covered: text that is burned into pixels, and which studies are one patient's.
"""

from csr.data.feedback.consensus import RULE, resolve
from csr.data.feedback.folder import FeedbackSet, write_feedback
from csr.data.feedback.rows import FeedbackBox, Label, PrototypeReview, Reading, ReviewSource

__all__ = [
    "RULE",
    "FeedbackBox",
    "FeedbackSet",
    "Label",
    "PrototypeReview",
    "Reading",
    "ReviewSource",
    "resolve",
    "write_feedback",
]
