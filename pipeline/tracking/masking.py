"""Keeps credentials out of everything that is logged."""

import re
from typing import Any

MASK = "***"

_KEY = re.compile(
    r"passw(or)?d|passphrase|secret|credential|api_?key|access_?key|private_?key|token$"
    r"|(^|[_.-])(token|auth|authorization|pwd)($|[_.-])",
    re.IGNORECASE,
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_USER_INFO = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@'\"]+@", re.IGNORECASE)
_QUERY = re.compile(r"([?&]([\w.-]+)=)([^&\s'\"]+)")
_KNOWN = re.compile(
    r"\b(ghp_|gho_|ghs_|github_pat_|glpat-|hf_|sk-|xox[abp]-|AKIA|ASIA|dckr_pat_|pypi-)[\w-]{16,}"
)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_QUOTED = re.compile(r"""(([\w.-]+)["']?\s*[:=]\s*)(["'])(?:\\.|(?!\3).)*\3""")
_PLAIN = re.compile(r"""^([+\- ]?\s*(?:-\s+)?(?:export\s+)?["']?([\w.-]+)["']?\s*[:=]\s*)(\S.*)$""")
_CODE = (".py", ".pyi", ".ipynb", ".js", ".ts", ".c", ".cpp", ".rs", ".go")


def is_secret(key: str) -> bool:
    """Whether a key's name says that its value is a credential (`hf_token`, not `max_tokens`)."""
    return bool(_KEY.search(_CAMEL.sub("_", key)))


def clean(text: str) -> str:
    """The text without user info in URLs, secrets in queries, and well-known kinds of tokens."""
    text = _USER_INFO.sub(r"\1", text)
    text = _QUERY.sub(lambda m: m[1] + MASK if is_secret(m[2]) else m[0], text)
    text = _BEARER.sub(rf"\1 {MASK}", text)
    return _KNOWN.sub(rf"\1{MASK}", text)


def masked(value: Any, key: str = "") -> Any:
    """A copy of nested dicts and lists with the values of secret keys masked and strings clean."""
    if value is None or isinstance(value, bool):
        return value
    if key and is_secret(key):
        return MASK
    if isinstance(value, dict):
        return {name: masked(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return clean(value) if isinstance(value, str) else value


def clean_diff(diff: str) -> str:
    """A diff whose secret values are masked.

    In code only quoted values are: `token = next(tokens)` is none. In other files (YAML, env,
    ini) whatever follows the key is.
    """
    lines = []
    code = in_private_key = False
    for line in diff.splitlines():
        if line.startswith(("+++ ", "--- ")):
            code = line.rstrip("\t").endswith(_CODE)
        in_private_key |= "-----BEGIN" in line and "PRIVATE KEY" in line
        if in_private_key:
            in_private_key = "-----END" not in line
            line = line[:1] + MASK
        line = _QUOTED.sub(lambda m: f"{m[1]}{m[3]}{MASK}{m[3]}" if is_secret(m[2]) else m[0], line)
        if not code and (match := _PLAIN.match(line)) and is_secret(match[2]):
            line = match[1] + MASK
        lines.append(clean(line))
    return "\n".join(lines) + "\n" if lines else ""
