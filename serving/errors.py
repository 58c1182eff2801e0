"""Refusals of the prediction service, each with its HTTP status and its machine-readable code."""


class ServingError(Exception):
    """Base of every error that serving raises on purpose.

    Attributes:
        status: HTTP status that answers it.
        code: Stable machine-readable name, the `code` of the HTTP error body.
    """

    status = 500
    code = "internal"


class NotAnImageError(ServingError):
    """The bytes do not decode as an image."""

    status = 400
    code = "not_a_picture"


class UnauthorizedError(ServingError):
    """The request brings no API key, or a wrong one."""

    status = 401
    code = "unauthorized"


class ForeignPageError(ServingError):
    """A web page of another origin tries to change something."""

    status = 403
    code = "foreign_page"


class NoSuchModelError(ServingError):
    """No model of that name is loaded; the message lists those that are."""

    status = 404
    code = "no_such_model"


class FeedbackOffError(ServingError):
    """The service was started without `--feedback`."""

    status = 404
    code = "feedback_off"


class ReviewOffError(ServingError):
    """The service was started without `--review`."""

    status = 404
    code = "review_off"


class NoSuchImageError(ServingError):
    """Feedback names an image that the service did not keep."""

    status = 404
    code = "no_such_picture"


class TooLargeError(ServingError):
    """More bytes, pixels or parts than the service accepts."""

    status = 413
    code = "too_large"


class WrongTypeError(ServingError):
    """The request's content type is not one the service reads."""

    status = 415
    code = "wrong_type"


class BadParameterError(ServingError):
    """A query parameter is outside its allowed values."""

    status = 422
    code = "bad_parameter"


class WrongFormError(BadParameterError):
    """The form has other parts than the endpoint reads."""


class OverloadedError(ServingError):
    """The queue is full; try again after `retry_after_s` seconds."""

    status = 503
    code = "overloaded"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotStoredError(ServingError):
    """Feedback cannot be stored: its limit is reached, the disk is full, or the folder cannot be written."""

    status = 507
    code = "not_stored"


class NoModelError(OverloadedError):
    """No model is loaded yet."""

    code = "no_model"


class BundleError(ServingError):
    """A model bundle is missing, incomplete, or its files do not match its manifest."""

    code = "bad_bundle"


class RegistryError(ServingError):
    """The MLflow registry cannot be asked, or what it has cannot be fetched."""

    code = "registry"


class NotReadableError(ServingError):
    """The request's body is not what its headers say it is."""

    status = 400
    code = "bad_request"


class SlowBodyError(ServingError):
    """The body did not arrive in time."""

    status = 408
    code = "timeout"


class ClientError(ServingError):
    """The client cannot get an answer: no server there, a refused request; one line with the remedy."""

    code = "client"


class StartError(ServingError):
    """The service cannot start: nothing released, the port is taken; one line with the remedy."""

    code = "start"
