"""The errors a user can cause or mend. Each message names the field or file, the reason and the remedy."""

from typing import ClassVar


class RayclusterError(Exception):
    """Base of every error that ends a command with one clear line instead of a traceback."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    @property
    def reason_and_remedy(self) -> tuple[str, str]:
        """The two parts of the message. Every message says what is wrong, then has a semicolon, then says what to do about it."""
        reason, _, remedy = self.message.rpartition("; ")
        return reason or remedy, remedy

    def __str__(self) -> str:
        # `args` is not used, because Ray Data appends advice on its own settings to the `args` of an error that passes through it.
        return self.message


class ConfigError(RayclusterError):
    """The configuration, or what it points at, cannot work. This is found before any costly work (exit code 2)."""

    exit_code = 2


class DataQualityError(RayclusterError):
    """More images failed than ``max_failed_fraction`` allows, or a table lost or doubled rows (exit code 3)."""

    exit_code = 3


class ArtifactError(RayclusterError):
    """A file on disk is not the one its record describes: damaged, foreign or of another version (exit code 4)."""

    exit_code = 4


class MissingFileError(ArtifactError):
    """A file that a record names is not there: deleted, or not yet visible where the storage shows files late."""
