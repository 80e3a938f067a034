"""Certificates for 127.0.0.1, made by openssl."""

import shutil
import subprocess
from pathlib import Path

import pytest


def made_in(folder: Path) -> Path:
    """One file with a fresh key and a certificate that it signed itself; cert.pem and key.pem hold each alone."""
    openssl = shutil.which("openssl") or pytest.skip("needs openssl")
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = [*"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split(), *subject]  # noqa: SIM905
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([openssl, *made, *files], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    return both
