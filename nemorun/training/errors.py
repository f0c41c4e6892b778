"""What stops a training run with a sentence instead of a traceback."""

from nemorun.errors import NemorunError


class TrainingError(NemorunError):
    """A run cannot start or go on; the message says why and what to do."""

    exit_code = 1
