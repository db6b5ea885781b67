"""Reads one page in a process of its own, because a parser can be made to burn time and memory.

Run by `readable.py` as a script. Reads a line of JSON and the body from stdin, answers JSON, ends.
"""

import codecs
import contextlib
import io
import json
import re
import sys
from typing import Any
from urllib.parse import urljoin

CPU_SECONDS = 4
MAX_ELEMENTS = 30_000
MAX_LINKS = 20_000
MEMORY_BYTES = 1024 * 1024 * 1024
MAX_CHARS = 2_000_000
MAX_STYLE_CHARS = 5_000
# These decode what looks like plain ASCII into markup, or are no charsets of the web.
FORBIDDEN = {"utf-7", "punycode", "idna", "unicode-escape", "raw-unicode-escape"}
HIDDEN = (
    "//script|//style|//template|//noscript|//*[@hidden]"
    "|//*[translate(normalize-space(@aria-hidden),'TRUE','true')='true']"
)
_NOTHING = r"(?:-\d|(?:0+(?:\.0*)?|\.0+)(?![\d.])|0*\.\d+px|0*\.0\d)"
UNSEEN_STYLE = re.compile(
    r"(?<![-\w])display\s*:\s*none|(?<![-\w])visibility\s*:\s*(?:hidden|collapse)|content-visibility\s*:\s*hidden"
    rf"|(?<![-\w])(?:font-size|opacity|zoom)\s*:\s*{_NOTHING}|font\s*:[^;]*?(?<![\d.]){_NOTHING}[a-z%]*[\s/]"
    r"|(?<![-\w])color\s*:\s*transparent|(?<![-\w])(?:left|top|right|bottom|text-indent|margin-left)\s*:\s*-(?:999|\d{4,})"
    r"|transform\s*:[^;]*scale[xy]?\(\s*0(?:\.0*)?\s*[,)]|clip-path\s*:\s*(?:inset\(\s*(?:50|100)%|circle\(\s*0)"
    r"|clip\s*:\s*rect\(\s*(?:0|1px)",
    re.IGNORECASE,
)
META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w.-]{1,40})", re.IGNORECASE)
XML_CHARSET = re.compile(rb"\A\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.-]{1,40})", re.IGNORECASE)
ALIASES = {"x-sjis": "cp932", "windows-31j": "cp932", "x-gbk": "gb18030", "ks_c_5601-1987": "cp949"}
# Pages say the narrow name and mean the wide one, so that is how browsers read them (WHATWG Encoding).
AS_BROWSERS_DO = {
    "iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254", "tis-620": "cp874", "gb2312": "gb18030",
    "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
}  # fmt: skip
BLOCKS = "boolean(.//div|.//p|.//li|.//br|.//h1|.//h2|.//h3|.//h4|.//h5|.//h6)"
IN_BRACKETS = str.maketrans({" ": "%20", "(": "%28", ")": "%29"})
TAG = re.compile(r"<[a-zA-Z!/?]|&#?\w{1,32};")
CSS_COMMENT = re.compile(r"/\*.*?(?:\*/|$)", re.DOTALL)
CSS_ESCAPE = re.compile(r"\\([0-9a-fA-F]{1,6})\s?|\\(.)", re.DOTALL)


def main() -> None:
    """Read one request, answer it."""
    limit_itself()
    request = json.loads(sys.stdin.buffer.readline())
    body = sys.stdin.buffer.read()
    if request["kind"] == "pdf":
        title, text = "", from_pdf(body)
    else:
        text = decoded(body, request["charset"], is_html=request["kind"] == "html")
        title = ""
        if request["kind"] == "html" and not request["raw"] and is_markup(text):
            title, text = from_html(text, request["url"])
    answer = {"title": title[:300], "text": text[:MAX_CHARS], "is_cut": len(text) > MAX_CHARS}
    sys.stdout.write(json.dumps(answer))


def limit_itself() -> None:
    """Bound this process where the system can; its caller ends it after a while in any case."""
    try:
        import resource
    except ImportError:  # there is none on Windows
        return
    for name, value in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(name, (value, value))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def decoded(body: bytes, charset: str, *, is_html: bool) -> str:
    """Decode by BOM, header, meta, and else as UTF-8; what does not fit is replaced."""
    for mark, name in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if body.startswith(mark):
            return body.decode(name, "replace")
    pattern = META_CHARSET if is_html else XML_CHARSET
    found = pattern.search(body[:4096])
    in_page = found.group(1).decode() if found else ""
    # A page that can be read for its charset is not in wide characters.
    in_page = "utf-8" if in_page.lower().startswith(("utf-16", "utf-32")) else in_page
    for name in (charset, in_page):
        try:
            known = codecs.lookup(ALIASES.get(name.lower(), name)).name
            known = AS_BROWSERS_DO.get(known, known)
            if known.replace("_", "-") not in FORBIDDEN:
                return body.decode(known, "replace")
        except (LookupError, ValueError):
            continue
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body.decode("cp1252", "replace")


def is_markup(text: str) -> bool:
    """Say whether it is HTML at all: data and plain text are called so, too."""
    with contextlib.suppress(ValueError, RecursionError):
        if text.lstrip()[:1] in ("{", "["):
            json.loads(text)
            return False
    return TAG.search(text) is not None


def from_pdf(body: bytes) -> str:
    """Return the text of all pages."""
    from pypdf import PdfReader

    return "\n\n".join(page.extract_text() for page in PdfReader(io.BytesIO(body)).pages)


def from_html(text: str, url: str) -> tuple[str, str]:
    """Return title and Markdown of what a reader would see."""
    import lxml.html  # type: ignore[import-untyped]
    import trafilatura

    parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True)
    try:
        tree = lxml.html.document_fromstring(text.replace("\0", "").encode("utf-8", "replace"), parser=parser)
    except lxml.etree.ParserError:  # there is not one element in it
        return "", ""
    title = tree.findtext(".//title") or ""
    refresh = tree.xpath("//meta[translate(@http-equiv,'REFSH','refsh')='refresh']/@content")
    for node in [
        *tree.xpath(HIDDEN),
        *(node for node in tree.xpath("//*[@style]") if is_unseen(node.get("style"))),
    ]:
        if node.getparent() is not None:
            node.drop_tree()
    for node in tree.xpath("//*[@data-preloaded]"):
        del node.attrib["data-preloaded"]  # read as the page's text where it is there, and nobody sees it
    absolute_links(tree, url)
    found = None
    # What finds the article takes far longer than what reads all there is.
    is_large = sum(1 for _ in tree.iter()) > MAX_ELEMENTS
    if not is_large:
        found = trafilatura.extract(
            tree, url=url, output_format="markdown", include_links=True, include_comments=False, fast=True
        )
    if not found or ("](" not in found and found.strip() == trafilatura.baseline(tree)[1].strip()):
        # There is no article, so this may be an index: its links are what it is for.
        written_links(tree)
        body = tree.find("body")
        texts = (tree if body is None else body).itertext()
        found = "\n".join(line for text in texts if (line := " ".join(text.split())))
    note = f"[The page wants to go on to: {refresh[0]}. That was not followed.]\n\n" if refresh else ""
    return " ".join(title.split()), note + found


def absolute_links(tree: Any, url: str) -> None:
    """Write each link as one can be followed from here; what leads to no page of the web is none."""
    with contextlib.suppress(ValueError):
        url = urljoin(url, tree.xpath("string(//base[@href][1]/@href)"))
    for number, link in enumerate(tree.iter("a")):
        target = ""
        with contextlib.suppress(ValueError):
            target = urljoin(url, (link.get("href") or "").strip()) if number < MAX_LINKS else ""
        if target.startswith(("http://", "https://")):
            link.set("href", target)
        else:
            link.attrib.pop("href", None)


def written_links(tree: Any) -> None:
    """Turn links into text that says where they lead."""
    for link in tree.xpath("//a[@href]"):
        apart = " " if len(link) and link.xpath(BLOCKS) else ""
        words = " ".join(apart.join(link.itertext()).split())
        target = link.attrib.pop("href")
        if words and link.getparent() is not None:
            for child in list(link):
                link.remove(child)
            link.text = f"[{words}]({target.translate(IN_BRACKETS)})"


def is_unseen(style: str) -> bool:
    """Say whether a reader sees nothing of an element with this style."""
    if len(style) > MAX_STYLE_CHARS:
        return True  # nobody writes so much in one; what it does stands behind
    plain = CSS_COMMENT.sub("", style)
    return UNSEEN_STYLE.search(CSS_ESCAPE.sub(_unescaped, plain) + " ") is not None


def _unescaped(found: re.Match[str]) -> str:
    if found.group(2) is not None:
        return found.group(2)
    number = int(found.group(1), 16)
    return chr(number) if number <= sys.maxunicode else "\ufffd"


if __name__ == "__main__":
    main()
