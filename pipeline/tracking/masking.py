"""Keeps credentials out of everything that is logged."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

MASK = "***"

_KEY = re.compile(
    r"passw(or)?d|passphrase|secret|credential|webhook|connection[_-]?string|token$"
    r"|(api|access|private|signing|encryption)[_-]?key"
    r"|(hf|api|access|auth|refresh|github|gitlab)[_-]?tokens$"
    r"|(^|[_.-])((pass|pw)$|(token|auth|authorization|pwd)($|[_.-]))",
    re.IGNORECASE,
)
_INNOCENT = re.compile(
    r"(^|[_.-])(bos|cls|eos|mask|pad|sep|unk)_token(?=_ids?$|$)|token_(type_)?ids?$"
    r"|(token|password)_(count|length)$|(forward|backward)_pass$",
    re.IGNORECASE,
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# to the last @ before the path; where there is none, the slash is the password's, not a port's
_USER_INFO = re.compile(
    r"""(\b[a-z][a-z0-9+.-]*://)(?:[^/\s'"]+|[^/\s'":[]*:(?!\d+/)[^\s'"]+)@""", re.IGNORECASE
)
_QUERY = re.compile(r"([?&]([\w.-]+)=)([^&\s'\"]+)")
_OVERRIDE = re.compile(r"[+~]*([\w./@-]+)=")
_SIGNATURE = re.compile(r"(^|-)sig(nature)?$", re.IGNORECASE)
_KNOWN = re.compile(
    r"\b(ghp_|gho_|ghs_|github_pat_|glpat-|hf_|sk-|xox[abp]-|AKIA|ASIA|dckr_pat_|pypi-)[\w-]{16,}"
)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
# whatever one of the others could match: most lines of a large diff are none
_SUSPECT = re.compile(rf"[:=]|{_BEARER.pattern}|{_KNOWN.pattern}", re.IGNORECASE)
# `key="…"`, `"key": "…"`, `["key"] = "…"`, `key: str = "…"`, in a notebook with `\"`
_QUOTED = re.compile(
    r"""((?<![\w.-])([\w.-]+)\\?["']?\]?\s*(?::[\w .|[\]]*=|[:=])\s*)"""
    r"""(\\?["'])(?:(?!\3)(?:\\(?:.|$)|[^\\]))+(?:\3|$)"""  # one way only to match backslashes
)
_PLAIN = re.compile(r"""(\s*(?:-\s+)?(?:export\s+)?["']?([\w.-]+)["']?\s*[:=](?!=)\s*)(\S.*)?""")
# `{user: x, token: …}`, and a comment such as `# token: …`, unless that goes on as prose
_FLOW = re.compile(
    r"""([{,]\s*["']?([\w.-]+)["']?\s*[:=](?!=)\s*)(\[[^]]*]|[^\s,{}\[\]"'][^,{}\[\]]*)"""
)
_COMMENT = re.compile(
    r"""(#\s*(?:-\s+)?(?:export\s+)?["']?([\w.-]+)["']?\s*[:=](?!=)\s*)(\S+)(?=\s*$)"""
)
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@ ?")
_INDEX = re.compile(r"index ([0-9a-f]+)\.\.")
_PROSE = (".md", ".rst", ".txt", ".html")
_CODE = (".py", ".pyi", ".ipynb", ".js", ".ts", ".c", ".cpp", ".rs", ".go")


def is_secret(key: str) -> bool:
    """Whether a key's name says that its value is a credential (`hf_token`, not `max_tokens`)."""
    return bool(_KEY.search(_INNOCENT.sub("", _CAMEL.sub("_", key))))


def clean(text: str, user_info: str = "") -> str:
    """The text without credentials in URLs, and without well-known kinds of tokens."""
    text = _USER_INFO.sub(rf"\1{user_info}", text)
    text = _QUERY.sub(
        lambda m: m[1] + MASK if is_secret(m[2]) or _SIGNATURE.search(m[2]) else m[0], text
    )
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
    if isinstance(value, str) and (found := _OVERRIDE.match(value)) and is_secret(found[1]):
        return found[0] + MASK
    return clean(value) if isinstance(value, str) else value


def clean_diff(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a diff with secret values masked; without any they come out as they are.

    In code only quoted values are: `token = next(tokens)` is none. In other files (YAML, env,
    ini) whatever follows the key is, with the lines below it that are deeper, or list items.
    """
    code = prose = in_private_key = False
    keys: dict[str, int] = {}  # column of the secret key above, in the old (-) and new (+) file
    for line, number in numbered(lines):
        head = _HUNK.match(line) if number is None else None
        if head:  # names the line that the hunk is below
            keys = {}
        elif number is None:
            if line.startswith("diff --git "):
                in_private_key, keys = False, {}
            elif line.startswith(("+++ ", "--- ")):
                code, prose = (line.rstrip('\t"').endswith(kind) for kind in (_CODE, _PROSE))
            yield line  # changed, it would name another file
            continue
        sign = head[0] if head else line[:1]
        text = line[len(sign) :]
        in_private_key |= "-----BEGIN" in line and "PRIVATE KEY" in line
        files = sign if sign in ("-", "+") else "-+"
        column = len(text) - len(text.lstrip(" \t-"))
        is_blank = not text[column:].strip()
        if in_private_key and not head:
            in_private_key = "-----END" not in line
            text = MASK
        elif not is_blank and any(column > keys.get(file, column) for file in files):
            text = text[:column] + MASK
        else:
            for file in files if not is_blank else "":
                keys.pop(file, None)
            if not _SUSPECT.search(text):
                yield line
                continue
            text = _QUOTED.sub(_mask_quoted, text)
            if not code and not prose:
                for kind in (_FLOW, _COMMENT) if "{" in text else (_COMMENT,):
                    text = kind.sub(lambda m: m[1] + MASK if is_secret(m[2]) else m[0], text)
            if not code and (match := _PLAIN.match(text)) and is_secret(match[2]):
                text = match[1] + (MASK if match[3] else "")
                keys |= dict.fromkeys(files, column)
        yield sign + clean(text, f"{MASK}@")  # without a mask it would not be put back


def unmasked(lines: Iterable[str], blob: Callable[[str], list[str]]) -> Iterator[str]:
    """The lines of a masked diff with what the commit has in those that it does not add.

    `blob` gives the lines of an old file by its id.
    """
    name, old = "", list[str]()
    for line, number in numbered(lines):
        if number is None and (found := _INDEX.match(line)):
            name, old = found[1], []
        if number and MASK in line:
            old = old or blob(name)
            yield line[0] + old[number - 1]
        else:
            yield line


def numbered(lines: Iterable[str]) -> Iterator[tuple[str, int | None]]:
    """Each line of a diff with its number in the old file.

    0 for one that is only in the new file, None for one that is in no hunk. By their first letters
    `--- x` can be the name of a file or a line `-- x` that was removed.
    """
    at = old = new = 0
    for line in lines:
        if line.startswith("\\") or not (old or new):
            yield line, None
            if head := _HUNK.match(line):
                at, old, new = int(head[1]), int(head[2] or 1), int(head[3] or 1)
            continue
        if line.startswith("+"):
            new -= 1
            yield line, 0
            continue
        yield line, at
        at, old, new = at + 1, old - 1, new - (not line.startswith("-"))


def _mask_quoted(match: re.Match[str]) -> str:
    return f"{match[1]}{match[3]}{MASK}{match[3]}" if is_secret(match[2]) else match[0]
