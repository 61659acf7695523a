"""What can go wrong while serving, each with a machine-readable code and, here and nowhere else, its HTTP status.

Adapters map a `ServingError` with one handler; a client's mistake is always a 4xx.
"""

from __future__ import annotations

from csr.errors import CSRError


class ServingError(CSRError):
    """One clear sentence for the client. Subclasses set ``code`` (stable, for programs) and ``status``."""

    code = "internal"
    status = 500

    @property
    def told(self) -> str:
        """The sentence that a stranger may read; the error's own is for the log."""
        return str(self)


class UnknownStudyError(ServingError):
    """No study of this digest was added."""

    code, status = "unknown_study", 404


class UnknownConceptError(ServingError):
    """The model has no concept of this name."""

    code, status = "unknown_concept", 404


class InvalidCursorError(ServingError):
    """A page that starts where none ended."""

    code, status = "invalid_cursor", 422


class UnknownItemError(ServingError):
    """No such atlas entry or sample."""

    code, status = "not_found", 404


class InvalidPruningError(ServingError):
    """A set of prototypes that cannot be pruned."""

    code, status = "invalid_pruning", 422


class InvalidReviewError(ServingError):
    """Reviews that contradict themselves."""

    code, status = "invalid_review", 422


class NoValidationError(ServingError):
    """A bundle of an earlier format, which says nothing of its validation studies."""

    code, status = "no_validation_data", 409


class NoRollbackError(ServingError):
    """A champion that cannot go back."""

    code, status = "no_rollback", 409


class RegistryUnavailableError(ServingError):
    """The model registry does not answer.

    Args:
        message: may name hosts and files, which are no stranger's business.
    """

    code, status = "registry_unavailable", 503

    @property
    def told(self) -> str:
        return "the model registry does not answer; the champion may have moved or not, see GET /v1/models"


class FrameError(ServingError):
    """Boxes drawn on an image of another size than the study's."""

    code, status = "image_size_differs", 409


class TooLargeError(ServingError):
    """More bytes than this server takes."""

    code, status = "too_large", 413


class UnsupportedMediaTypeError(ServingError):
    """A body of another content type than the route reads."""

    code, status = "unsupported_media_type", 415


class UnsupportedImageError(ServingError):
    """The bytes are of a kind that this server does not read."""

    code, status = "unsupported_image", 415


class UnreadableImageError(ServingError):
    """An image of a known kind that is empty, damaged or too big."""

    code, status = "unreadable_image", 422


class MisfitError(ServingError):
    """An image unlike the training images, where such images are refused."""

    code, status = "does_not_fit", 422


class DecoderError(ServingError):
    """The process that decodes images cannot be started."""

    code, status = "decoder_unavailable", 503


class InvalidInteractionError(ServingError):
    """A box or concept that cannot be applied."""

    code, status = "invalid_interaction", 422


class NotReadyError(ServingError):
    """The model has not passed its checks."""

    code, status = "not_ready", 503


class StoreError(ServingError):
    """The store does not answer: nothing that must be recorded can be done.

    Args:
        message: names files and hosts, which are no stranger's business.
        told: what strangers read instead.
    """

    code, status = "store_unavailable", 503

    def __init__(self, message: str, told: str = "the store does not answer; try again in a moment") -> None:
        super().__init__(message)
        self._told = told

    @property
    def told(self) -> str:
        return self._told


class AlteredStudyError(ServingError):
    """A study in the store that is not the one which was added."""

    code, status = "study_altered", 500


class IdempotencyError(ServingError):
    """An idempotency key that was used before, for something else."""

    code, status = "idempotency_conflict", 409


class ModelChangedError(ServingError):
    """A reading of numbers that another model gave than the one which answers now."""

    code, status = "model_changed", 409


class AlreadySignedError(ServingError):
    """A study that the reader has signed, and wants to skip."""

    code, status = "already_signed", 409


class UnknownReadingError(ServingError):
    """The study has no such reading, or none that the reader may see."""

    code, status = "unknown_reading", 404


class BatchError(ServingError):
    """Several files of one upload are refused, and with them all."""

    code, status = "unreadable_images", 422


class OtherInputError(ServingError):
    """The study was added for a model that looks at images of another size."""

    code, status = "upload_again", 409


class CannotNameError(ServingError):
    """A model that cannot tell what a box is about."""

    code, status = "cannot_name", 409


class TooManyFilesError(ServingError):
    """More files in one request than this server takes."""

    code, status = "too_many_files", 413


class TooSlowError(ServingError):
    """A request that did not arrive in time."""

    code, status = "too_slow", 408


class UnknownModelError(ServingError):
    """No model of this name, or not in this version."""

    code, status = "unknown_model", 404


class InvalidInferenceError(ServingError):
    """An inference request that the model cannot take: its form, its tensors or its parameters."""

    code, status = "invalid_inference", 400


class UnsupportedEncodingError(ServingError):
    """A request body compressed in a way that this server does not read."""

    code, status = "unsupported_encoding", 415


class UnsupportedCallError(ServingError):
    """A call of the protocol that this server does not offer."""

    code, status = "unsupported_call", 501


class EngineUnavailableError(ServingError):
    """What runs the model's graphs does not answer: a server that is gone, too slow or overloaded, a closed engine."""

    code, status = "engine_unavailable", 503


class InvalidTensorError(ServingError):
    """Tensors that are not what the model's graphs take."""

    code, status = "invalid_tensor", 400


class UnauthenticatedError(ServingError):
    """Nobody known asks: no credential, or one that is not valid."""

    code, status = "unauthenticated", 401


class TokenError(UnauthenticatedError):
    """A token that is not accepted; each reason has a code of its own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ForbiddenError(ServingError):
    """Somebody known asks for what their role may not do."""

    code, status = "forbidden", 403


class CrossSiteError(ForbiddenError):
    """Another site's page makes a signed-in browser ask."""

    code = "cross_site"


class RateLimitedError(ServingError):
    """Too many requests; ``retry_after_s`` says when to come back."""

    code, status = "rate_limited", 429

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class IdentityProviderError(ServingError):
    """The keys that tokens are checked with cannot be had."""

    code, status = "identity_provider_unavailable", 503


class InvalidKeyNameError(ServingError):
    """A name that no key can have."""

    code, status = "invalid_key_name", 422


class KeyConflictError(ServingError):
    """A key that cannot be made beside those that there are."""

    code, status = "key_conflict", 409


class UnknownKeyError(ServingError):
    """No key has this id."""

    code, status = "unknown_key", 404


class UnknownSessionError(ServingError):
    """No session has this id, or it has ended."""

    code, status = "unknown_session", 404


class BurnedInAnnotationError(ServingError):
    """A DICOM image that says of itself that its pixels name the patient."""

    code, status = "burned_in_annotation", 422


class IncompleteDicomError(ServingError):
    """A DICOM file without the attributes that identify an image."""

    code, status = "incomplete_dicom", 422


class DicomContextError(ServingError):
    """The header that a report is to be filed under is not that of the image which was read."""

    code, status = "dicom_context_differs", 409


class InvalidDicomQueryError(ServingError):
    """A search or an identifier that must not reach a DICOM node."""

    code, status = "invalid_dicom_query", 422


class UnknownInstanceError(ServingError):
    """The DICOM node has no such instance."""

    code, status = "unknown_instance", 404


class NodeError(ServingError):
    """A DICOM node that does not answer, or not as DICOMweb says."""

    code, status = "dicom_node_unavailable", 502


class NodeStoreError(NodeError):
    """A DICOM node that did not store all that it was sent."""

    code = "dicom_store_failed"


class NoSourceError(ServingError):
    """A study that was not added as a DICOM image."""

    code, status = "not_dicom", 409


class SeveralSourcesError(ServingError):
    """A study that came as several DICOM images, and a request that names none of them."""

    code, status = "several_sources", 409


class UnknownSourceError(ServingError):
    """A study that did not come as this DICOM image."""

    code, status = "unknown_source", 404


class UnknownNodeError(ServingError):
    """No archive of this name in the configuration."""

    code, status = "unknown_node", 404
