"""What a person wants to know when a server is ready, whichever engine it has."""

import shlex

from twofour.serve.config import ServeConfig

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def how_to_ask(config: ServeConfig, url: str, host: str) -> list[str]:
    lines = []
    if host not in LOOPBACK and not config.edge.api_keys:
        lines.append("  warning   no API key: whoever reaches this port can use it; see --api-key-file")
    if config.ui:
        lines.append(f"  chat      {url}/")
    return [*lines, f"ready at {url}/v1; try:", f"  {curl(url, config)}"]


def curl(url: str, config: ServeConfig) -> str:
    key = '-H "Authorization: Bearer $KEY" ' if config.edge.api_keys else ""
    body = f'{{"model": "{config.served_model_name}", "prompt": "Once upon a time", "max_tokens": 32}}'
    header = '-H "Content-Type: application/json" '
    return f"curl {url}/v1/completions {key}{header}-d {shlex.quote(body)}"
