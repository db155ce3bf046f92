"""Service tokens that the daemon shows to the host platform: read from a file, and again when it changes.

Attacks and accidents it stops: a token that everybody knows, or that everybody on the machine can read; one that would split a header
field; a rotated token that a daemon goes on sending; an empty file taken for "no token needed".

    TokenFileError          the file holds no usable token; at start, and for each call that would need it
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from registry.key_sets import DEVELOPMENT_KEY_PREFIX

WELL_KNOWN: Final = frozenset({"local-runner-key", "changeme", "change-me", "secret", "test", "token", "password", "development"})
"""What examples and development set-ups use; production refuses them."""
LEAST_CHARACTERS: Final = 16
"""In production. Shorter ones can be guessed."""
_MOST_BYTES: Final = 4096
_READABLE_BY_OTHERS: Final = 0o007
_FIELD = re.compile(r"[\x21-\x7e]+\Z")


class TokenFileError(Exception):
    """A token file is missing, malformed or not allowed here. The message names the file, never what it holds."""

    def __init__(self, file: Path, problem: str) -> None:
        super().__init__(f"{file}: {problem}")


class TokenFile:
    """One token. The file is opened for each use and read where it is not the one that was read last.

    Args:
        file: holds the token and, at most, blanks around it; nobody but owner and group may read it.
        production: refuse tokens that are well known or short.
    """

    def __init__(self, file: Path, *, production: bool) -> None:
        self.file = file
        self._production = production
        self._version: tuple[int, int, int] | None = None
        self._token = ""

    def read(self) -> str:
        """Return the token as the file has it now.

        Raises:
            TokenFileError: it has none that may be used. What was read before is not used instead: it may have been withdrawn.
        """
        try:
            with self.file.open("rb") as stream:
                status = os.fstat(stream.fileno())
                version = (status.st_mtime_ns, status.st_size, status.st_ino)
                if version == self._version:
                    return self._token
                data = stream.read(_MOST_BYTES + 1)
        except OSError as error:
            raise TokenFileError(self.file, "cannot be read") from error
        if status.st_mode & _READABLE_BY_OTHERS:
            raise TokenFileError(self.file, "must not be accessible to everybody (chmod 640 or less)")
        self._token, self._version = self._check(data), version
        return self._token

    def _check(self, data: bytes) -> str:
        token = data.decode("latin-1").strip(" \t\r\n")
        if len(data) > _MOST_BYTES or _FIELD.match(token) is None:
            raise TokenFileError(self.file, f"must hold one token of visible ASCII characters, at most {_MOST_BYTES} bytes")
        if self._production and (token.lower() in WELL_KNOWN or token.startswith(DEVELOPMENT_KEY_PREFIX)):
            raise TokenFileError(self.file, "holds a token that everybody knows, which production refuses")
        if self._production and len(token) < LEAST_CHARACTERS:
            raise TokenFileError(self.file, f"holds a token of fewer than {LEAST_CHARACTERS} characters, which production refuses")
        return token
