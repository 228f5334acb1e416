"""Made-up English for prompts: seeded, endless, nobody's property.

Plain sentences about a water mill, put together from word lists. One word is about 1.2
tokens in common vocabularies; the report shows the prompt tokens that servers counted.
"""

from __future__ import annotations

from random import Random

_PEOPLE = (
    "miller", "carpenter", "engineer", "clerk", "farmer", "mason", "surveyor", "baker",
    "teacher", "driver", "smith", "gardener",
)  # fmt: skip
_THINGS = (
    "wheel", "gate", "channel", "bridge", "stone", "belt", "shaft", "barrel", "ledger",
    "lantern", "pump", "roof", "door", "cart", "map", "rope", "dam", "bearing",
)  # fmt: skip
_PLACES = (
    "river", "upper pond", "granary", "village", "workshop", "old road", "north field",
    "market", "lower yard", "station", "forest edge", "harbour",
)  # fmt: skip
_QUALITIES = (
    "broken", "heavy", "new", "narrow", "wooden", "quiet", "wet", "bright", "loose", "old",
    "clean", "slow", "strong", "small", "rusty",
)  # fmt: skip
_DEEDS = (
    "repaired", "measured", "carried", "painted", "moved", "checked", "lifted", "replaced",
    "cleaned", "drew", "sold", "found", "closed", "opened",
)  # fmt: skip
_TIMES = (
    "in the morning", "after the storm", "before noon", "on the second day", "at night",
    "during the flood", "last winter", "when the rain stopped", "in early spring",
)  # fmt: skip
_TOPICS = (
    "how a water wheel turns grain into flour", "why rivers bend", "how to keep bread fresh",
    "how to plan a small garden", "why bridges need joints", "how a lock lifts a boat",
    "how to read a map without a compass", "why clocks need springs", "how to sharpen a knife",
    "how rain becomes a river", "how to stack firewood", "why wood floats on water",
)  # fmt: skip


def sentence(rng: Random) -> str:
    """One sentence of twelve to twenty words."""
    first = (
        f"the {rng.choice(_PEOPLE)} {rng.choice(_DEEDS)} the {rng.choice(_QUALITIES)} "
        f"{rng.choice(_THINGS)} near the {rng.choice(_PLACES)} {rng.choice(_TIMES)}"
    )
    second = (
        f"and the {rng.choice(_PEOPLE)} {rng.choice(_DEEDS)} "
        f"{rng.randrange(2, 90)} of the {rng.choice(_THINGS)}s"
    )
    return (f"{first}, {second}." if rng.random() < 0.5 else f"{first}.").capitalize()


def passage(rng: Random, words: int) -> str:
    """Whole sentences, at least `words` words of them."""
    sentences: list[str] = []
    count = 0
    while count < words:
        sentences.append(sentence(rng))
        count += len(sentences[-1].split())
    return " ".join(sentences)


def question(rng: Random) -> str:
    """A short request that opens differently each time, so little of it is shared."""
    return (
        f"{rng.randrange(10, 100)} {rng.choice(_PEOPLE)}s ask: explain {rng.choice(_TOPICS)}, "
        f"with one example from the {rng.choice(_PLACES)}."
    )
