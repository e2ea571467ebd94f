"""Loaders of the sources of comments, tweets and forum posts: hate, harassment, profanity, sexual content."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from guardrail.training.rows import UNKNOWN, Row
from guardrail.training.sources_prompts import LoaderContext, csv_rows, json_lines

__all__ = ["ABUSE"]

ABUSE = ("hate", "hate_threat", "harassment", "harassment_threat", "threat", "profanity", "sexual_content")
"""What a comment that readers call toxic may violate."""

_SEXISM = ("hate", "hate_threat", "harassment", "harassment_threat")
_LINK = re.compile(r"https?://\S+|www\.\S+|\[URL\]")
_NAME = re.compile(r"@\w+|\[USER\]")
_RETWEET = re.compile(r'^[!"\s]*RT\b[:\s]*|&#\d+;|!{2,}')


def _post(text: str) -> str:
    """A post without user names, links and retweet marks."""
    for entity, char in (("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"')):
        text = text.replace(entity, char)
    text = _RETWEET.sub(" ", _NAME.sub(" ", _LINK.sub(" ", text)))
    return re.sub(r"^[\s:\"]+", "", text)


def toxic_spans(context: LoaderContext, source: str) -> Iterator[Row]:
    votes: defaultdict[str, list[bool]] = defaultdict(list)
    for row in csv_rows(context.folder / "annotations.csv"):
        votes[row["comment_id"]].append(row["not toxic"] != "True")
    for row in csv_rows(context.folder / "comments.csv"):
        given = votes.get(row["comment_id"], [])
        if len(given) < 2:
            continue
        share = sum(given) / len(given)
        turns = [("user", row["comment_text"])]
        if share > 0:
            yield from context.among(source, turns, share, ABUSE)
        else:
            yield from context.safe(source, turns, 0.05)


_EDOS = {
    "1. threats, plans to harm and incitement": (("hate_threat", "hate"), 1.0),
    "2. derogation": (("hate",), 0.95),
    "3. animosity": (("hate",), 0.8),
    "4. prejudiced discussions": (("hate",), 0.8),
}


def edos(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in csv_rows(context.folder / "edos_labelled_aggregated.csv"):
        turns = [("user", _post(row["text"]))]
        if row["label_sexist"] == "sexist":
            hazards, share = _EDOS[row["label_category"]]
            yield from context.unsafe(source, turns, share, hazards)
        else:
            # Not sexist is not the same as harmless: only hate is known to be absent.
            others = tuple(context.hazards.names - {"hate", "hate_threat"})
            yield from context.among(source, turns, UNKNOWN, others, weight=0.5)


def davidson(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in csv_rows(context.folder / "labeled_data.csv"):
        turns = [("user", _post(row["tweet"]))]
        if row["class"] == "0":
            yield from context.unsafe(source, turns, 0.95, ("hate",))
        elif row["class"] == "1":
            yield from context.unsafe(source, turns, 0.8, ("profanity",), weight=0.4)
        else:
            yield from context.safe(source, turns, 0.02)


def stormfront(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in csv_rows(context.folder / "stormfront.csv"):
        turns = [("user", row["text"])]
        if row["label"] == "hate":
            yield from context.unsafe(source, turns, 0.9, ("hate",))
        elif row["label"] == "noHate" and len(row["text"]) > 30:
            others = tuple(context.hazards.names - {"hate", "hate_threat", "sexual_content"})
            yield from context.among(source, turns, UNKNOWN, others, weight=0.5)


def convabuse(context: LoaderContext, source: str) -> Iterator[Row]:
    severity: defaultdict[str, list[int]] = defaultdict(list)
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    texts: dict[str, list[tuple[str, str]]] = {}
    for row in csv_rows(context.folder / "ConvAbuseEMNLPfull.csv"):
        key = f"{row['conv_id']} {row['user']}"
        severity[key].append(next((level for level in (1, 0, -1, -2, -3) if row[f"is_abuse.{level}"] == "1"), 0))
        kinds[key].update(kind for kind in ("racist", "sexist", "sex_harassment", "homophobic", "transphobic")
                          if row[f"type.{kind}"] == "1")  # fmt: skip
        texts[key] = [("assistant", row["agent"]), ("user", row["user"])]
    for key, levels in severity.items():
        share = sum(level < 0 for level in levels) / len(levels)
        if share >= 0.5:
            hazards = {"harassment"} | ({"sexual_content"} if kinds[key]["sex_harassment"] else set())
            hazards |= {"hate"} if any(kinds[key][kind] for kind in ("racist", "homophobic", "transphobic")) else set()
            yield from context.unsafe(source, texts[key], 0.5 + 0.4 * share, tuple(hazards))
        elif all(level == 1 for level in levels):
            yield from context.safe(source, texts[key], 0.02)


def surge_toxicity(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in csv_rows(context.folder / "toxicity_en.csv"):
        if row["is_toxic"] == "Toxic":
            yield from context.among(source, [("user", row["text"])], 0.95, ABUSE)
        else:
            yield from context.safe(source, [("user", row["text"])])


def madlibs(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in csv_rows(context.folder / "bias_madlibs_77k.csv"):
        if row["Label"] == "BAD":
            yield from context.unsafe(source, [("user", row["Text"])], 0.95, ("hate",))
        else:
            yield from context.safe(source, [("user", row["Text"])])


def wikipedia_comments(context: LoaderContext, source: str) -> Iterator[Row]:
    for row in csv_rows(context.folder / "toxicity_nonfuzzed_testset.csv"):
        text = row["comment"].replace("`", "'").replace("==", " ")
        if row["toxic"] == "True":
            yield from context.among(source, [("user", text)], 0.9, ABUSE)
        else:
            yield from context.safe(source, [("user", text)], 0.02)


_ATTRIBUTES = {
    "sexually_explicit": "sexual_content",
    "identity_attack": "hate",
    "threat": "threat",
    "insult": "harassment",
    "profanity": "profanity",
}


def realtoxicity(context: LoaderContext, source: str) -> Iterator[Row]:
    for name in ("toxic", "nontoxic"):
        for row in json_lines(context.folder / f"{name}.jsonl"):
            for part in (row["prompt"], row["continuation"]):
                yield from _scored(context, source, part)


def _scored(context: LoaderContext, source: str, part: dict[str, Any]) -> Iterator[Row]:
    text = str(part["text"]).strip()
    scores = {hazard: float(part.get(name) or 0.0) for name, hazard in _ATTRIBUTES.items()}
    found = tuple(hazard for hazard, score in scores.items() if score >= 0.6)
    highest = max(scores.values())
    if found:
        yield from context.unsafe(source, [("user", text)], min(0.95, highest), found, weight=0.7)
    elif highest < 0.25:
        yield from context.safe(source, [("user", text)], 0.02)


def wikipedia_talk(context: LoaderContext, source: str) -> Iterator[Row]:
    csv.field_size_limit(1 << 24)
    for name in ("gc", "gn"):
        for row in csv_rows(context.folder / f"{name}.csv"):
            text = row["text"].replace("''", "")
            if row["label"] in ("0", "0.0"):
                yield from context.safe(source, [("user", text)], 0.02)
            elif row["label"] in ("1", "1.0"):
                yield from context.among(source, [("user", text)], 0.85, ABUSE)
