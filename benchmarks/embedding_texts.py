"""Two hundred texts that embeddings are compared on: plain, long, short, odd, in many scripts."""

from __future__ import annotations

from random import Random
from typing import Final

from benchmarks.prose import passage, question, sentence

COUNT: Final = 200

_WRITTEN: Final = (
    # Hardly anything in it
    "a",
    ".",
    "?!",
    " \t x \n ",
    "7",
    "ok",
    "…",
    "-",
    "A",
    "the the the the",
    # Upper case, accents, and what normalising does to them
    "THE WHEEL TURNS UNDER THE BRIDGE.",
    "Crème brûlée à la carte, s'il vous plaît.",
    "El niño comió piñas en la mañana.",
    "Füße, Straße, Übermut: drei deutsche Wörter.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Zażółć gęślą jaźń.",
    "İstanbul'da hava güzel.",
    "Cafe\u0301 with a combining accent beside café without one.",
    # Other scripts
    "Река течёт под старым мостом.",
    "Η ρόδα γυρίζει αργά το πρωί.",
    "水车在桥下慢慢转动。",
    "水車は橋の下でゆっくり回る。",
    "물레방아가 다리 아래에서 천천히 돈다.",
    "הגלגל מסתובב לאט מתחת לגשר.",
    "تدور العجلة ببطء تحت الجسر.",
    "पहिया पुल के नीचे धीरे-धीरे घूमता है।",
    "ล้อหมุนช้าๆใต้สะพาน",
    "Колесо turns 在 the bridge の下で.",
    "漢字、かな、カタカナ：混ぜた文。",
    # Signs
    "The miller laughed 😀 and the 🌊 rose.",
    "👩‍🔧 repaired the gate 🔧🔧🔧",
    "€ 40, £ 30, $ 50 or ¥ 600?",
    "x² + y² = z², ∑ and ∞ are signs as well.",
    "→ ← ↑ ↓ ⇒ ■ □ ▲ ☺ ♫",
    "50 % of 3.14159 is 1.570795",
    "“Curly” and ‘single’ quotes – and a dash — or two.",
    "Tab\tand\nline\r\nbreaks  and   spaces",
    "\u00a0non-breaking\u00a0spaces\u2003and wide ones\u3000here",
    "e\u0301\u0302\u0303 piled accents",
    # What programs write
    "def gate(level: float) -> bool:\n    return level > 1.5  # metres",
    "SELECT name, height FROM gates WHERE height > 3 ORDER BY name;",
    "https://example.org/mill/wheel?id=42&lang=en#top",
    "user.name+tag@example.co.uk",
    '{"wheel": {"speed": 12, "unit": "rpm"}, "open": true}',
    "C:\\mill\\gates\\upper.cfg",
    "rm -rf ./build && make -j2 | tee log.txt",
    "0xDEADBEEF 1e-9 v2.0.1-rc.3 127.0.0.1:8000",
    "<p class='note'>The <b>upper</b> gate is closed.</p>",
    "ISO-8859-1, UTF-8; base64==",
    # Words that are rare, made up or long
    "Pneumonoultramicroscopicsilicovolcanoconiosis is a long word.",
    "qwrtzpsdfg hjklyxcvbnm",
    "antidisestablishmentarianism counterrevolutionaries",
    "supercalifragilisticexpialidocious",
    "flibbertigibbet kerfuffle lollygag",
    "headrace tailrace penstock sluiceway forebay",
    # Meanings close together and far apart
    "The wheel is turning.",
    "The wheel turns.",
    "The wheel has stopped.",
    "Nothing moves any more.",
    "How do I open the gate?",
    "What is the way to open the gate?",
    "The gate cannot be opened.",
    "Bread is made from flour, water and salt.",
    "Flour comes from grain that a mill has ground.",
    "A river floods its valley in spring.",
    "Interest rates rose by a quarter of a point.",
    "The patient was given antibiotics twice a day.",
    "Two goals in the last minute won the match.",
)


def texts() -> list[str]:
    """The texts, the same every time; the longest have about 230 tokens."""
    rng = Random(5)
    made = list(_WRITTEN)
    made += [passage(rng, words) for words in (40, 60, 80, 100, 120, 140, 160, 20, 30, 50) * 2]
    made += [question(rng) for _ in range(40)]
    while len(made) < COUNT:
        made.append(sentence(rng))
    return made
