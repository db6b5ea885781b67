"""Text that leaves us because something broke: bounded, and without anything that looks like a secret.

One vocabulary says which names are secret (`is_secret_name`), for texts here and for arguments in the audit.
Every search goes from a fixed mark (`sk-`, `://`, `=`) and looks only so far from it, so that no text can
make it slow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

from mcp_tools.output.plain import encodable, safe_str

MAX_ERROR_CHARS: Final = 2_000
MASK: Final = "[secret removed]"
MAX_NAME_CHARS: Final = 100
"""Of a name, its first and its last this many characters are looked at."""
PAIR_NAMES: Final = frozenset({"name", "key", "header", "field", "variable"})
"""`{"name": "Authorization", "value": …}`: what the name of a pair stands under,"""
PAIR_VALUES: Final = frozenset({"value", "val"})
"""and what its value does."""

_MIN_SECRET_CHARS: Final = 4
_MAX_LINE_CHARS: Final = 10_000


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# --- Which names are secret. Words of a name: `dbPass`, `DB_PASS` and `db-pass` are all (db, pass). ---

_WORD: Final = re.compile(r"[A-Z]++(?![a-z])|[A-Z]?[a-z]++|[A-Z]")
_ANYWHERE: Final = re.compile(
    r"passwor[dt]|passwd|passphrase|passcode|passkey|secret(?!ar|ion)|credential|authori[sz]ation"
    r"|(?:api|access|private|ssh|signing|encryption|auth|account|master|shared|deploy|license)keys?$"
    r"|cookies?$|token$|(?:access|auth|refresh|session|bearer|api)tokens$|pincode$"
    r"|(?<!com)(?<!by)(?<!tres)(?<!sur)(?<!over)(?<!under)(?<!im)pass$|pwd$"
)
_WHOLE: Final = _words("bearer jwt jwts pw otp totp cvv cvc cred creds auth pin sessid phpsessid jsessionid")
_KEYS_OF: Final = _words(
    "access account admin aes api app auth client consumer decryption deploy encryption gpg hmac license"
    " master pgp private root rsa service session shared signing ssh storage subscription webhook"
)
_TOKENS_OF: Final = _words(
    "access api auth bearer csrf device github gitlab id oauth personal push refresh secret security session"
    " slack user xsrf"
)
# `first_pass`, `led_pin`: what these words mean after others; and what says that a name is about a secret.
_OTHER_PASS: Final = _words("band by fail first high last low multi one render second single third two")
_OTHER_PIN: Final = _words("analog clock data digital gpio input led map output push rx tx")
_AFTER_PIN: Final = _words("code number hash block")
_ABOUT: Final = _words(
    "age attempts backend bucket buckets budget chars"
    " count counter counts dir directory domain enabled endpoint"
    " expired expires expiration expiry field file filename flow hint label len length limit limits manager"
    " max method min mode name names path paths placeholder policy prefix provider rate required reset scheme"
    " server size store strength strategy ttl type types uri url usage used valid validator version"
)
_DOING: Final = _words("has hide is mask masks redact")
_WEAK: Final = _words("auth bearer cookie cookies cred creds credential credentials otp pass pin pw token")


def is_secret_name(name: str) -> bool:
    """Say whether what stands under this name (`password`, `DB_PASS`, `refreshTokens`) is a secret."""
    if len(name) <= MAX_NAME_CHARS:
        return _is_secret_name(name)
    return _is_secret_name(name[:MAX_NAME_CHARS]) or _is_secret_name(name[-MAX_NAME_CHARS:])


def secret_option(text: str) -> bool:
    """Say whether the argument after this one (`--token`, `-password`) is a secret."""
    return text[:1] == "-" and is_secret_name(text) and not text.startswith("--no-")


@lru_cache(maxsize=8192)
def _is_secret_name(name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words[-1] in _ABOUT or words[0] in _DOING:
        return False
    before = ""
    for place, word in enumerate(words):
        after = words[place + 1] if place + 1 < len(words) else ""
        if _is_secret_word(before, word, after):
            return True
        before = word
    return _joined_is_secret(words)


def _joined_is_secret(words: list[str]) -> bool:
    """`pass_word`, `PassPhrase`, and `pAssWord`."""
    joined = "".join(words)
    return re.search(r"password|passphrase|passcode|passwd", joined) is not None


def _is_secret_word(before: str, word: str, after: str) -> bool:
    match word:
        case "pass":
            return not after and before not in _OTHER_PASS
        case "pin":
            return before not in _OTHER_PIN and (not after or after in _AFTER_PIN)
        case "key" | "keys":
            return before in _KEYS_OF
        case "tokens":
            return before in _TOKENS_OF
    return word in _WHOLE or _ANYWHERE.search(word) is not None


# --- Forms that are secrets whatever surrounds them: what they begin with, and how they go on. ---

_KEY: Final = r"(?:[A-Za-z0-9]{1,40}[-_]){0,6}[A-Za-z0-9]{16,}[\w-]*"
_FORMS: Final = {
    **{f"{start}{dash}": _KEY for start in ("sk", "pk", "rk") for dash in "-_"},  # several vendors
    "sk-ant-": r"[\w-]{20,}",
    "sk-proj-": r"[\w-]{20,}",
    **{f"gh{kind}_": r"[A-Za-z0-9]{20,}" for kind in "pousr"},  # GitHub
    "github_pat_": r"\w{20,}",
    **{f"gl{kind}-": r"[\w.-]{16,}" for kind in ("pat", "rt", "dt", "cbt", "ptt", "ft", "soat")},  # GitLab
    **{f"xox{kind}-": r"[A-Za-z0-9-]{10,}" for kind in "abeprs"},  # Slack
    "xapp-": r"[A-Za-z0-9-]{20,}",
    "hooks.slack.com/services/": r"[\w/]{20,}",
    "AKIA": r"[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS key ids
    "ASIA": r"[A-Z0-9]{16}(?![A-Za-z0-9])",
    "AIza": r"[\w-]{30,}",  # Google
    "ya29.": r"[\w-]{20,}",
    "GOCSPX-": r"[\w-]{20,}",
    "eyJ": r"[\w-]{8,}+\.[\w-]{8,}+\.[\w-]*",  # JSON Web Tokens
    "hf_": r"[A-Za-z0-9]{24,}",  # Hugging Face
    "npm_": r"[A-Za-z0-9]{30,}",
    "pypi-": r"AgE[\w-]{40,}",
    "SG.": r"[\w-]{12,}+\.[\w-]{12,}",  # SendGrid
    "hvs.": r"[\w-]{24,}",  # Vault
    "hvb.": r"[\w-]{24,}",
    "ATATT3": r"[\w=-]{40,}",  # Atlassian
    "dckr_pat_": r"[\w-]{20,}",
    "rubygems_": r"[a-f0-9]{40,}",
    "whsec_": r"[A-Za-z0-9+/=]{20,}",
    "lin_api_": r"[A-Za-z0-9]{20,}",
    "nvapi-": r"[\w-]{30,}",
    "gsk_": r"[A-Za-z0-9]{30,}",
    "xai-": r"[A-Za-z0-9]{40,}",
    "pplx-": r"[A-Za-z0-9]{30,}",
    "figd_": r"[\w-]{30,}",
    "NRAK-": r"[A-Z0-9]{20,}",
    "PMAK-": r"[a-f0-9-]{30,}",
    "AGE-SECRET-KEY-": r"[A-Z0-9]{30,}",
    **{f"do{kind}_v1_": r"[A-Za-z0-9]{32,}" for kind in "por"},  # DigitalOcean
    **{f"shp{kind}_": r"[A-Fa-f0-9]{32,}" for kind in ("at", "ca", "pa", "ss")},  # Shopify
}


def _form(start: str, rest: str) -> re.Pattern[str]:
    # A pattern that begins with plain characters is found fast, so what stands before them is looked at last.
    start = re.escape(start)
    return re.compile(rf"{start}(?<![A-Za-z0-9]{start}){rest}", re.ASCII)


_FOUND_BY_FORM: Final = {
    **{start: _form(start, rest) for start, rest in _FORMS.items()},
    "PRIVATE KEY": re.compile(
        r"-----BEGIN[ A-Z]{0,40}?PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!----)){0,8000}+"
        r"(?:-----END[ A-Z]{0,40}?PRIVATE KEY(?: BLOCK)?-----)?"
    ),
}
_MARKS: Final = ("-", "=", ":", "_", *(start for start in _FORMS if not set(start) & set("-=:_")))


def may_hold_secret(text: str) -> bool:
    """Say whether masking could find anything: it never says no where it would. Much faster than masking."""
    return any(mark in text for mark in _MARKS)


def mask_secrets(text: str) -> str:
    """Replace what looks like a key, a token or a password. Guesses by form: it can miss, and overdo."""
    if not may_hold_secret(text):
        return text
    for start, form in _FOUND_BY_FORM.items():
        if start in text:
            text = form.sub(MASK, text)
    if "://" in text:
        text = _without(text, _in_urls(text))
    if "--" in text or "curl" in text:
        text = _without(text, _after_options(text))
    return _without(text, _after_names(text))


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    pieces: list[str] = []
    done = 0
    for start, end in spans:
        pieces += (text[done:start], MASK)
        done = end
    return "".join((*pieces, text[done:])) if pieces else text


# --- `scheme://user:password@host` and `scheme://token@host` ---

_AUTHORITY: Final = re.compile(r"://([^\s/:@?#\"'<>\\\[]{0,256}+)([@:])")
_REST_OF_URL: Final = re.compile(r"[^\s\"'<>]{0,300}+")
_PORT: Final = re.compile(r"\d{1,5}(?![^/?#,;)\]}.])|[${%]")
_KEY_AS_USER: Final = re.compile(r"(?=[^\d]*\d)(?=[^A-Za-z]*[A-Za-z])[\w%~=-]{16,}+\Z", re.ASCII)


def _in_urls(text: str) -> Iterator[tuple[int, int]]:
    for found in _AUTHORITY.finditer(text):
        user, sign = found.groups()
        is_key = _KEY_AS_USER.match(user) is not None
        if sign == "@":
            if is_key:
                yield found.span(1)
            continue
        start = found.end()
        rest = text[start : start + 300]
        rest = rest[: (match := _REST_OF_URL.match(rest)) and match.end()]
        end = rest.partition("/")[0].rfind("@")
        if end < 0 and _PORT.match(rest) is None:  # a slash in a password that should have been %2F
            end = rest.find("@")
            if "://" in rest[: max(end, 0)]:
                continue
        if end > 0:
            yield (found.start(1) if is_key else start), start + end
        elif end == 0 and user:
            yield found.span(1)


# --- `--password X`, `"--token", "X"`, `curl -u user:X` ---

_OPTION: Final = re.compile(
    r"--(?<![\w-]--)([A-Za-z][\w-]*+)(?:[ \t]+(?![-\s])|\\{0,4}[\"'],\s{0,40}(?=\\{0,4}[\"']))"
)
_CURL_USER: Final = re.compile(
    r"-u(?<!\S-u)[ \t]{0,3}[\"']?[^\s:\"']{1,100}+:(?!\d+(?:\s|\Z)|\[secret removed\])([^\s\"']{2,})"
)
_AFTER_OPTION: Final = _words(
    "a an and are argument arguments as at be before by can does flag flags for from has if in instead is it"
    " may means must not of on option options or parameter setting should switch that the then this to value"
    " was when where which will with without works you"
)


def _after_options(text: str) -> Iterator[tuple[int, int]]:
    done = 0
    if "--" in text:
        for found in _OPTION.finditer(text):
            if found.start() < done or not secret_option(f"--{found[1]}"):
                continue
            span = _value(text, found.end(), "", min_chars=1)
            if span is None:
                continue
            value = text[slice(*span)]
            if text[span[0] - 1] in " \t" and (value.rstrip(".:`") in _AFTER_OPTION or _is_usage(value)):
                continue
            done = span[1]
            yield span
    elif "curl" in text:
        for found in _CURL_USER.finditer(text):
            yield found.span(1)


def _is_usage(value: str) -> bool:
    return value[0] in "<[|$" or (value.isupper() and is_secret_name(value))


# --- `name = value`, in all its quotings ---

_SIGN: Final = re.compile(r"[=:]")
_NAME_BACKWARDS: Final = re.compile(r"([ \t\"'`\\\]*]{0,8}+)([\w-]{2,100}+)")
_SECOND_SIGN: Final = re.compile(r"[=>]?[ \t]{0,20}(?:\s{0,60}(?=\\{0,8}[\"'`]))?")
_GAP_AFTER_EQUALS: Final = re.compile(
    r"[=>]?(?:[ \t]{0,20}\s{0,60}(?=\\{0,8}[\"'`])|[ \t]{0,20}(?:\r?\n[ \t]{0,2})?)"
)
_OPENING: Final = re.compile(r"(?:\[\s{0,20})?[bfru]{0,2}(\\{0,8})(\"\"\"|'''|[\"'`])")
_UNQUOTED: Final = re.compile(r"[^\s\"',;&)]++(?:,(?![\w.-]{0,60}+\s{0,3}[=:])[^\s\"',;&)]++)*+")
_SCHEME: Final = re.compile(r"(?i)(?:bearer|basic)[ \t]{1,3}(?=\S)")
_AUTH_SCHEME: Final = re.compile(
    r"(?i)(?:bearer|basic|token|digest|negotiate|ntlm|api-?key|hawk|dpop|oauth|ssws|jwt|key|genie-?key|splunk"
    r"|aws4-hmac-sha256|scram-sha-\d{1,3}|vapid|private-?token)[ \t]{1,3}(?=\S)"
)
_UNKNOWN_SCHEME: Final = re.compile(r"[A-Za-z][\w-]{0,30}+[ \t]{1,3}(?=[^\s\"',;&)]{8})")
_PARAMETERS: Final = re.compile(
    r"(?:[\w-]{1,40}+=(?:\\?\"[^\"\n]{0,2000}+\"|[^\s,\"']{0,2000}+)(?:,[ \t]{0,3})?){1,20}+"
)
_COOKIES: Final = re.compile(r"[\w.$-]{1,100}+=[^\r\n\"']{1,8000}+")
_INNOCENT: Final = re.compile(
    r"(?i)(?:str|string|bytes|bool|int|float|final|secretstr|any|none|null|nil|true|false|undefined|number|boolean|optional"
    r"|required|inherit|include|omit|same-origin|disabled|enabled|object|array|list|dict|self|missing|unknown"
    r"|invalid|expired|empty|const|static|\*{3,}.*|x{4,}|\.{3,})[\]}|:.!?*]*\Z"
)
_TYPE: Final = re.compile(
    r"[ \t]{0,3}(?:str|string|bytes|String|SecretStr|&str|(?:Optional|Final|Annotated)\[\w{1,40}\])"
    r"(?:[ \t]{0,3}\|[ \t]{0,3}(?:None|null|undefined))?[ \t]{0,3}=(?!=)"
)
_REFERENCE: Final = re.compile(
    r"\$\{?\{?[\s\w.:-]{0,80}+\}|\$\([\w .-]{1,80}|\$[A-Z_][A-Z0-9_]*+(?![\w])|%[A-Z_]{2,60}%"
    r"|\{\{|\{[\w.]{1,60}\}|<[\w .-]{1,80}>"
    r"|//|\[secret removed\]"
)
_CODE: Final = re.compile(
    r"(?:await[ ]|new[ ])?[A-Za-z_][A-Za-z_0-9.:]{0,80}+[(\[]|[a-z_]{1,40}+(?:\.[a-z_]{1,40}+)+(?![\w-])"
)
_MIXED: Final = re.compile(r"(?=[A-Za-z]*+\d)(?=\d*+[A-Za-z])[A-Za-z0-9+=]{12,}+\Z")
_SIGNATURES: Final = _words("sig signature x-amz-signature x-goog-signature x-amz-security-token")
_PAIR: Final = re.compile(
    r"[ \t]{0,3}\\{0,8}[\"']?([\w-]{1,100}+)\\{0,8}[\"']?[ \t]{0,3}(?:,|,?\r?\n)\s{0,40}"
    r"\\{0,8}[\"']?val(?:ue)?\\{0,8}[\"']?[ \t]{0,3}:"
)
_PAIR_TURNED: Final = re.compile(
    r"[ \t]{0,3}\\{0,8}[\"']([^\"'\\]{1,4000}+)\\{0,8}[\"']\s{0,3},\s{0,40}"
    r"\\{0,8}[\"'](?:name|key|header|field|variable)\\{0,8}[\"'][ \t]{0,3}:[ \t]{0,3}"
    r"\\{0,8}[\"']([\w-]{1,100}+)"
)


def _after_names(text: str) -> Iterator[tuple[int, int]]:
    done = 0
    for sign in _SIGN.finditer(text):
        place = sign.start()
        if place < done:
            continue
        named = _NAME_BACKWARDS.match(text[max(0, place - 110) : place][::-1])
        if named is None:
            continue
        name = named[2][::-1]
        span = _under(text, name, named[1], place)
        if span is not None and span[0] >= done:
            done = span[1]
            yield span


def _under(text: str, name: str, between: str, place: int) -> tuple[int, int] | None:
    """Return what is secret after the sign at `place`, by what stands before it."""
    low = name.lower()
    if low in PAIR_NAMES:
        pair = _PAIR.match(text, place + 1)
        if pair is not None and is_secret_name(pair[1]):
            return _value(text, pair.end(), pair[1])
    elif low in PAIR_VALUES:
        turned = _PAIR_TURNED.match(text, place + 1)
        if turned is not None and is_secret_name(turned[2]):
            return turned.span(1)
    if low in _SIGNATURES:
        before = place - len(name) - len(between) - 1
        return _value(text, place + 1, name) if before >= 0 and text[before] in "?&" else None
    if not is_secret_name(name):
        return None
    typed = _TYPE.match(text, place + 1)
    if typed is not None:
        return _value(text, typed.end(), name)
    is_bare = text[place] == ":" and low in _WEAK and not between.strip("* \t")
    return _value(text, place + 1, name, is_bare=is_bare, is_code=between[:1] == " ")


def _value(  # noqa: PLR0912 - one form after another, in the order that decides
    text: str,
    start: int,
    name: str,
    *,
    is_bare: bool = False,
    is_code: bool = False,
    min_chars: int = _MIN_SECRET_CHARS,
) -> tuple[int, int] | None:
    """Return where the value that begins about `start` begins and ends, or `None` if it is no secret."""
    sign = text[start - 1 : start + 1]
    if sign in ("::", ":="):
        if sign == "::":
            return None
        start += 1
    is_compared = sign == "=="
    gap = (_SECOND_SIGN if text[start - 1] != "=" else _GAP_AFTER_EQUALS).match(text, start)
    start = gap.end() if gap is not None else start
    opening = _OPENING.match(text, start)
    if opening is not None:
        start = opening.end()
        end = _closing(text, start, opening[2], len(opening[1]))
        if "cookie" not in name.lower():
            scheme = _scheme(text, start, name)
            start = scheme if scheme < end else start
        value = text[start : min(end, start + 200)]
        spared = (
            end - start < min_chars or _REFERENCE.match(value) or (value.isalpha() and _INNOCENT.match(value))
        )
        return None if spared else (start, end)
    if is_compared:
        return None
    if "cookie" in name.lower():
        cookies = _COOKIES.match(text, start)
        if cookies is not None:
            return cookies.span()
    after_scheme = _scheme(text, start, name)
    parameters = _PARAMETERS.match(text, after_scheme) if after_scheme > start else None
    if parameters is not None and parameters.end() - after_scheme >= _MIN_SECRET_CHARS:
        unquoted = _UNQUOTED.match(text, after_scheme)
        return after_scheme, max(parameters.end(), unquoted.end() if unquoted is not None else 0)
    if after_scheme == start and "authorization" in name.lower():
        unknown = _UNKNOWN_SCHEME.match(text, start)
        after_scheme = unknown.end() if unknown is not None else start
    unquoted = _UNQUOTED.match(text, after_scheme)
    if unquoted is None or unquoted.end() - after_scheme < min_chars:
        return None
    has_scheme = after_scheme > start
    start, end = (
        (start if has_scheme and _scheme(text, start, name) == start else after_scheme),
        unquoted.end(),
    )
    head = text[start : min(end, start + 200)]
    if has_scheme:
        return None if _REFERENCE.match(text, start) else (start, end)
    if _REFERENCE.match(text, start) or _INNOCENT.match(head) or head.rstrip(":;.") == name:
        return None
    if is_bare and _MIXED.match(head) is None:
        return None
    code = _CODE.match(text, start, start + 200)
    if code is not None and (is_code or code[0][-1] not in "([" or text[start - 1] in " =") and name:
        return None
    return start, end


def _scheme(text: str, start: int, name: str) -> int:
    form = _AUTH_SCHEME if "auth" in name.lower() else _SCHEME
    scheme = form.match(text, start)
    return start if scheme is None else scheme.end()


def _closing(text: str, start: int, quote: str, escapes: int) -> int:
    """Return where a quoted text ends; one that is not closed ends with its line."""
    limit = min(len(text), start + _MAX_LINE_CHARS)
    if len(quote) == 1:
        line_end = text.find("\n", start, limit)
        limit = limit if line_end < 0 else line_end
    place = start
    while (place := text.find(quote, place, limit)) >= 0:
        before = place
        while before > start and text[before - 1] == "\\":
            before -= 1
        count = place - before
        if (count <= escapes) if escapes else (count % 2 == 0):
            return before if escapes else place
        place += 1
    return limit


def describe_exception(error: BaseException) -> str:
    """Render a tool's exception for a model: `TypeName: message`, masked, at most 2,000 characters."""
    name = encodable(type(error).__name__)
    # Cut before masking as well: a 50 MB message must not be searched for secrets.
    message = mask_secrets(safe_str(error)[: 2 * MAX_ERROR_CHARS])
    return shorten(f"{name}: {message}" if message else name, MAX_ERROR_CHARS)


def shorten(text: str, max_chars: int) -> str:
    """Return `text`, or its head, what was left out, and its tail, together about `max_chars`."""
    if len(text) <= max_chars:
        return text
    half = max_chars // 2
    return f"{text[:half]} …[{len(text) - 2 * half} characters left out]… {text[-half:]}"
