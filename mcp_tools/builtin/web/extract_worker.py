"""Reads one page in a process of its own, because a parser can be made to burn time and memory.

Run by `readable.py` as a script. Reads a line of JSON and the body from stdin, answers JSON, ends.
"""

import codecs
import io
import json
import re
import resource
import sys

CPU_SECONDS = 10
MEMORY_BYTES = 1024 * 1024 * 1024
MAX_CHARS = 2_000_000
# These decode what looks like plain ASCII into markup, or are no charsets of the web.
FORBIDDEN = {"utf-7", "punycode", "idna", "unicode_escape", "raw_unicode_escape"}
HIDDEN = "//script|//style|//template|//noscript|//*[@hidden]|//*[@aria-hidden='true']"
UNSEEN_STYLE = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)"
    r"|(?:font-size|opacity)\s*:\s*0+(?:\.0+)?(?:[a-z%]+)?\s*(?:;|!|$)",
    re.IGNORECASE,
)


def main() -> None:
    """Read one request, answer it."""
    for name, value in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(name, (value, value))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    request = json.loads(sys.stdin.buffer.readline())
    body = sys.stdin.buffer.read()
    if request["kind"] == "pdf":
        title, text = "", from_pdf(body)
    else:
        text = decoded(body, request["charset"], is_html=request["kind"] == "html")
        title = ""
        if request["kind"] == "html" and not request["raw"]:
            title, text = from_html(text, request["url"])
    answer = {"title": title[:300], "text": text[:MAX_CHARS], "is_cut": len(text) > MAX_CHARS}
    sys.stdout.write(json.dumps(answer))


def decoded(body: bytes, charset: str, *, is_html: bool) -> str:
    """Decode by BOM, header, meta, and else as UTF-8; what does not fit is replaced."""
    for mark, name in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if body.startswith(mark):
            return body.decode(name, "replace")
    found = re.search(rb"<meta[^>]{0,200}?charset=[\"']?([\w-]{1,40})", body[:4096], re.IGNORECASE)
    in_page = found.group(1).decode() if found and is_html else ""
    for name in (charset, in_page):
        try:
            known = codecs.lookup(name).name
            if known not in FORBIDDEN:
                return body.decode(known, "replace")
        except (LookupError, ValueError):
            continue
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body.decode("cp1252", "replace")


def from_pdf(body: bytes) -> str:
    """Return the text of all pages."""
    from pypdf import PdfReader

    return "\n\n".join(page.extract_text() for page in PdfReader(io.BytesIO(body)).pages)


def from_html(text: str, url: str) -> tuple[str, str]:
    """Return title and Markdown of what a reader would see."""
    import lxml.html  # type: ignore[import-untyped]
    import trafilatura

    parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    tree = lxml.html.document_fromstring(
        text.replace("\0", "").encode("utf-8", "replace") or b"<p>", parser=parser
    )
    title = tree.findtext(".//title") or ""
    refresh = tree.xpath("//meta[translate(@http-equiv,'REFSH','refsh')='refresh']/@content")
    for node in [
        *tree.xpath(HIDDEN),
        *(node for node in tree.xpath("//*[@style]") if UNSEEN_STYLE.search(node.get("style"))),
    ]:
        if node.getparent() is not None:
            node.drop_tree()
    plain = trafilatura.html2txt(lxml.html.tostring(tree, encoding="unicode"))
    found = trafilatura.extract(
        tree, url=url, output_format="markdown", include_links=True, include_comments=False, fast=True
    )
    note = f"[The page wants to go on to: {refresh[0]}. That was not followed.]\n\n" if refresh else ""
    return " ".join(title.split()), note + (found or plain)


if __name__ == "__main__":
    main()
