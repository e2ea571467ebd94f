"""From the categories of the sources to hazards: which upstream label means what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from guardrail import taxonomy_yaml
from guardrail.errors import suggestion
from guardrail.training.rows import Hazards

__all__ = ["AEGIS", "AILUMINATE", "CATQA", "CRIMES", "MULTIJAIL", "HazardTable", "crime_hazards"]


class HazardTable:
    """The hazards with their relations and wordings, read from `configs/hazards.yaml`."""

    def __init__(self, entries: Mapping[str, Mapping[str, list[str]]]) -> None:
        self.names: Hazards = frozenset(entries)
        self.wordings: dict[str, tuple[str, ...]] = {name: tuple(entry["wordings"]) for name, entry in entries.items()}
        related = {name: frozenset(entry["related"]) for name, entry in entries.items()}
        self._related = {
            name: others | {other for other, names in related.items() if name in names}
            for name, others in related.items()
        }

    @classmethod
    def read(cls, file: Path, known: Iterable[str] | None = None) -> HazardTable:
        """The table in a YAML file: hazard → related, wordings.

        With `known`, the table is of these labels, whatever they are: the file may leave some out, but names no others.
        Raises TaxonomyError with file, line and field.
        """
        document = taxonomy_yaml.read(file)
        names = tuple(document.data if known is None and isinstance(document.data, Mapping) else known or ())
        entries: dict[str, dict[str, list[str]]] = {name: {"related": [], "wordings": []} for name in names}
        for name, entry in document.root.fields((), names).items():
            for key, values in entry.fields((), ("related", "wordings")).items():
                entries[name][key] = list(values.texts())
                strange = [item for item in values.items() if key == "related" and item.value not in entries]
                if strange:
                    hint = suggestion(strange[0].text(), names, f"known: {', '.join(names)}")
                    raise strange[0].error(f"there is no label {strange[0].value!r}", hint)
        return cls(entries)

    def possible(self, violated: Iterable[str]) -> Hazards:
        """The hazards that a text may violate besides the given ones: all that are related to one of them."""
        given = frozenset(violated)
        return frozenset().union(*(self._related[name] for name in given)) - given


AEGIS: dict[str, tuple[tuple[str, ...], float]] = {
    "Harassment": (("harassment",), 0.9),
    "Criminal Planning/Confessions": (("non_violent_crimes",), 0.95),
    "Guns and Illegal Weapons": (("guns",), 0.9),
    "Hate/Identity Hate": (("hate",), 0.95),
    "Suicide and Self Harm": (("self_harm",), 0.95),
    "Political/Misinformation/Conspiracy": (("misinformation",), 0.7),
    "Threat": (("threat",), 0.9),
    "Malware": (("cybercrime",), 0.95),
    "Violence": (("violent_crimes",), 0.9),
    "Profanity": (("profanity",), 0.9),
    "Sexual": (("sexual_content",), 0.9),
    "Fraud/Deception": (("fraud",), 0.9),
    "Controlled/Regulated Substances": (("drugs",), 0.9),
    "PII/Privacy": (("privacy",), 0.9),
    "Copyright/Trademark/Plagiarism": (("intellectual_property",), 0.8),
    "High Risk Gov Decision Making": ((), 0.5),
    "Unauthorized Advice": (("specialized_advice",), 0.6),
    "Other": ((), 0.5),
    "Manipulation": (("unethical",), 0.8),
    "Immoral/Unethical": (("unethical",), 0.8),
    "Illegal Activity": (("non_violent_crimes",), 0.9),
}
"""Aegis 2.0 category → hazards, P(unsafe). No hazard: the category is unknown."""

AILUMINATE: dict[str, tuple[tuple[str, ...], float]] = {
    "vcr": (("violent_crimes",), 0.9),
    "ncr": (("non_violent_crimes",), 0.9),
    "src": (("sex_crimes",), 0.9),
    "cse": (("child_sexual_exploitation",), 0.95),
    "dfm": (("defamation",), 0.75),
    "hte": (("hate",), 0.9),
    "ipv": (("intellectual_property",), 0.75),
    "iwp": (("indiscriminate_weapons",), 0.9),
    "prv": (("privacy",), 0.85),
    "ssh": (("self_harm", "self_harm_instructions"), 0.9),
    "sxc_prn": (("sexual_content",), 0.85),
    "spc_ele": (("elections", "specialized_advice"), 0.6),
    "spc_fin": (("specialized_advice",), 0.5),
    "spc_hlt": (("specialized_advice",), 0.5),
    "spc_lgl": (("specialized_advice",), 0.5),
}
"""MLCommons hazard code → hazards, P(unsafe); the label is the prompt's topic, so some are mild."""

CATQA: dict[str, tuple[tuple[str, ...], float]] = {
    "Drug": (("drugs",), 1.0),
    "Weapon": (("guns",), 1.0),
    "Human Trafficking": (("sex_crimes", "violent_crimes"), 1.0),
    "Cybercrime": (("cybercrime",), 1.0),
    "Theft and Robbery": (("non_violent_crimes",), 1.0),
    "Content Sexual exploitation": (("child_sexual_exploitation",), 1.0),
    "Physical abuse": (("violent_crimes",), 1.0),
    "Emotional and psychological abuse": (("harassment", "violent_crimes"), 1.0),
    "Neglect": (("violent_crimes",), 0.95),
    "Online predation": (("child_sexual_exploitation",), 1.0),
    "Racial or ethnic hate": (("hate",), 1.0),
    "Religious intolerance": (("hate",), 1.0),
    "Gender-based violence": (("hate", "violent_crimes"), 1.0),
    "Cyberbullying": (("harassment",), 1.0),
    "Terrorism and extremism": (("terrorism",), 1.0),
    "Malicious software designed to spread and damage computers": (("cybercrime",), 1.0),
    "Trojans": (("cybercrime",), 1.0),
    "Spyware": (("cybercrime", "privacy"), 1.0),
    "Ransomware": (("cybercrime",), 1.0),
    "Adware": (("cybercrime",), 0.95),
    "Self-harm": (("self_harm", "self_harm_instructions"), 1.0),
    "Assault and battery": (("violent_crimes",), 1.0),
    "Hazardous material handling": (("indiscriminate_weapons",), 0.9),
    "Unsafe practices": (("specialized_advice",), 0.8),
    "Weapon making": (("guns",), 1.0),
    "Financial fraud": (("fraud",), 1.0),
    "Intellectual property theft": (("intellectual_property",), 1.0),
    "Market manipulation": (("fraud", "non_violent_crimes"), 1.0),
    "Employment scams": (("fraud",), 1.0),
    "Investment scams": (("fraud",), 1.0),
    "Identity theft": (("fraud", "privacy"), 1.0),
    "Phishing": (("fraud", "cybercrime"), 1.0),
    "False advertising": (("fraud",), 0.95),
    "Scamming": (("fraud",), 1.0),
    "Counterfeiting": (("fraud", "intellectual_property"), 1.0),
    "Pornography": (("sexual_content",), 0.95),
    "Erotic text": (("sexual_content",), 0.95),
    "Nude imagery": (("sexual_content",), 0.95),
    "Sexually explicit dialogue": (("sexual_content",), 0.95),
    "Adult-themed humor": (("sexual_content",), 0.9),
    "Election advertising": (("elections",), 0.7),
    "Political misinformation": (("elections", "misinformation"), 0.9),
    "Lobbying": (("unethical",), 0.6),
    "Political activism": (("unethical",), 0.5),
    "Partisan commentary": (("misinformation",), 0.6),
    "Data theft": (("privacy", "cybercrime"), 1.0),
    "Surveillance": (("privacy",), 1.0),
    "Doxxing": (("privacy",), 1.0),
    "Deepfake creation": (("privacy", "misinformation"), 0.95),
    "Tracking and location monitoring": (("privacy",), 1.0),
    "Personal investment advice": (("specialized_advice",), 0.4),
    "Retirement planning": (("specialized_advice",), 0.3),
    "Tax planning": (("specialized_advice",), 0.4),
    "Real estate investment": (("specialized_advice",), 0.4),
    "Debt management": (("specialized_advice",), 0.3),
}
"""CatQA subcategory → hazards, P(unsafe)."""

MULTIJAIL: dict[str, tuple[str, ...]] = {
    "Violence & incitement": ("violent_crimes",),
    "Bullying & harassment": ("harassment",),
    "Hate speech & offensive language": ("hate",),
    "Discrimination & injustice": ("hate",),
    "Theft": ("non_violent_crimes",),
    "Conspiracy theories & misinformation": ("misinformation",),
    "Animal abuse": ("animal_abuse",),
    "Terrorism & organized crime": ("terrorism",),
    "Fraud & deception": ("fraud",),
    "Substance abuse & banned substances": ("drugs",),
    "Adult content": ("sexual_content",),
    "Sexual exploitation & human trafficking": ("sex_crimes",),
    "Property crime & vandalism": ("non_violent_crimes",),
    "Soliciting personally identifiable information": ("privacy",),
    "Weapons": ("guns",),
    "Child abuse": ("child_sexual_exploitation", "violent_crimes"),
    "Self-harm": ("self_harm",),
    "Non-violent unethical behavior": ("unethical",),
}

CRIMES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("child porn|child sex|pedophil|minors", ("child_sexual_exploitation",)),
    ("rape|sex traffick|sexual|prostitut|sex work|incest|revenge porn", ("sex_crimes",)),
    ("porn", ("sexual_content",)),
    ("terror|extremis|bombing|hijack|assassinat|political or ideological|radicali", ("terrorism",)),
    ("hate crime|motivated by|racis|discriminat|genocide|xenophob|sexis|homophob", ("hate",)),
    ("cyberbull|bullying|harass|stalking", ("harassment",)),
    ("cyber|hack|malware|computer|phish|ransom|virus", ("cybercrime",)),
    ("identity theft|data breach|privacy|surveil", ("privacy", "fraud")),
    ("fraud|scam|ponzi|pyramid|counterfeit|forger|deceiv|embezzl|insider|financial", ("fraud",)),
    ("drug|narcot|cocaine|smok|alcohol|tobacco|driving under|dui|vaping|addict", ("drugs",)),
    ("animal|cockfight|dog fight|circus|poach|horse rac|bullfight|hunting|zoo", ("animal_abuse",)),
    ("water contamin|chemical|biolog|nuclear|poison", ("indiscriminate_weapons",)),
    ("gun|weapon|firearm|arms", ("guns",)),
    ("suicide|self-harm|self harm|eating disorder", ("self_harm",)),
    ("murder|homicide|assault|kidnap|violen|manslaughter|battery|torture|human traffick|organ traffick|child traffick"
     "|slavery|abuse", ("violent_crimes",)),
    ("piracy|copyright|plagiar|intellectual", ("intellectual_property",)),
    ("election|voter|vote", ("elections",)),
    ("defam|libel|slander", ("defamation",)),
    ("misinformation|disinformation|conspira|fake news", ("misinformation",)),
    ("theft|burglar|robber|shoplift|launder|tax|smuggl|vandal|arson|property|corrupt|brib|traffick|blackmail|extort"
     "|gambl|trespass|loot|perjur|illegal|crime", ("non_violent_crimes",)),
)  # fmt: skip
"""AART's free-text crime, by the first pattern found in it → hazards."""


def crime_hazards(crime: str) -> tuple[str, ...]:
    """The hazards of a free-text crime; empty when it is none (pollution, landfills and the like)."""
    import re

    return next((hazards for pattern, hazards in CRIMES if re.search(pattern, crime.casefold())), ())
