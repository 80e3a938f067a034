"""What opens a server: a key, headers, and which certificates are trusted. No proxy of the environment is used.

Keys and the values of headers are secrets: no repr, no message and no document has them.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twofour.prune.errors import InputError
from twofour.serve.edge.key_file import fits_header

# What the client itself says of a request and of how its answer comes.
_OWN = ("accept", "accept-encoding", "connection", "content-length", "content-type", "expect", "host")
_OURS = frozenset((*_OWN, "te", "transfer-encoding", "upgrade"))
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_LONG = 8  # letters of a word in a value; what is shorter is one like Bearer, which any server may say
_SHORT = 5  # letters of a value; true is one that any server may say


@dataclass(frozen=True)
class Access:
    """ca_file: trust the certificates in it and no others. insecure: trust any.

    Raises InputError, which quotes no value, where a header cannot carry one.
    """

    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_file: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.api_key and not fits_header(self.api_key):
            raise InputError(
                "the API key has a space, a line end or more than ASCII in it; give one key as it was issued"
            )
        for name, value in self.headers.items():
            _refuse_header(name, value)
        if self.api_key and "authorization" in map(str.lower, self.headers):
            raise InputError("the API key and a header would both be the Authorization; give one of them")
        if self.ca_file and self.insecure:
            raise InputError("--insecure trusts every certificate; give it or --ca-file, not both")

    def fields(self) -> dict[str, str]:
        """The headers of every request."""
        key = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {**key, **self.headers}

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown where a server sends it back, the longest first."""
        words = {word for value in self.headers.values() for word in value.split() if len(word) >= _LONG}
        words |= {value for value in self.headers.values() if len(value) >= _SHORT}
        return tuple(sorted(words | ({self.api_key} if self.api_key else set()), key=len, reverse=True))

    def context(self) -> ssl.SSLContext:
        """For TLS. Raises InputError where `ca_file` holds no certificate."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise InputError(f"no certificate can be read from {self.ca_file} ({error}); give a PEM file") from error
        context.set_alpn_protocols(["http/1.1"])
        if self.insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def trust(self) -> str:
        """Which certificates, for documents."""
        return "any" if self.insecure else "of a file" if self.ca_file else "of the system"


OPEN = Access()


def told(load: Mapping[str, Any]) -> Access:
    """As a document tells of it: names of headers without values, and whose certificates were trusted, not which."""
    headers, trust = dict.fromkeys(load.get("headers", ()), ""), load.get("tls")
    return Access(headers=headers, ca_file=Path() if trust == "of a file" else None, insecure=trust == "any")


def tls_error(error: ssl.SSLError) -> str:
    """Why TLS failed, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted: {error.verify_message}; give --ca-file, or --insecure for any"
    if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return "the server does not speak TLS; give its http address"
    return f"{error.reason or 'no handshake'}; is it an https address?"


def _refuse_header(name: str, value: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError("a header has a name that is none; write NAME=VALUE, the name of letters, digits and -")
    if name.lower() in _OURS:
        raise InputError(f"the client sets {name} itself; leave this header away")
    if not (value.isascii() and value.isprintable()):
        raise InputError(f"the value of header {name} has more than printable ASCII in it; give it as it was issued")
