"""Whose cached prefixes a request may find: those of its own key and cache_salt, by whatever path it comes.

A salt is a hash that the digest of the key is in, so nobody can name that of another key.
"""

from twofour.serve.openai.parsing import check_amount, parse_json
from twofour.serve.openai.serving import salt_of


def salted(raw: bytes, key: bytes, given: str | None) -> bytes:
    """key: its digest. Of two equal names in a document the last counts."""
    return raw.rstrip()[:-1] + b', "cache_salt": "' + salt_of(key, given).encode() + b'"}'


def salted_unseen(raw: bytes, key: bytes) -> bytes:
    """A body of which the edge knows only that it is JSON. Raises RequestError where it is not."""
    if not raw.strip():
        return raw
    check_amount(raw)
    document = parse_json(raw)
    given = document.get("cache_salt") if isinstance(document, dict) else 0
    if not document or not isinstance(given, str | None):  # which vLLM refuses
        return raw
    return salted(raw, key, given)
