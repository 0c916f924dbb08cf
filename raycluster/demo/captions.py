"""Captions for drawn pictures, and the nouns that occur in them. These nouns are the demo's vocabulary."""

from __future__ import annotations

from random import Random

from raycluster.config import TAC_PROMPTS
from raycluster.demo.drawing import Scene
from raycluster.demo.kinds import KINDS

FRAMES = ("{}", "a picture of {}", "a drawing of {}", "an icon of {}", "a sketch of {}", "an illustration of {}")
"""Templates for a phrase such as "a red fish". The background follows them."""

BACKGROUND_NOUNS = {
    "plain": ("wall",),
    "shaded": ("gradient", "shading"),
    "striped": ("stripes", "lines"),
    "checked": ("checks", "squares"),
    "spotted": ("spots", "dots"),
    "cluttered": ("clutter", "shards"),
}
NOISE_NOUNS = ("noise", "grain")
FRAME_NOUNS = (
    "picture",
    "drawing",
    "icon",
    "sketch",
    "illustration",
    "photo",
    "art",
    "video game",
    "origami",
    "background",
)


def caption(scene: Scene, random: Random) -> str:
    """Describe a picture: a noun for the thing, in most captions also its color and its background."""
    noun = _noun(scene.kind, random)
    words = []
    if scene.size != "medium" and random.random() < 0.3:
        words.append(scene.size)
    if random.random() < 0.65:
        words.append(scene.color)
    return random.choice(FRAMES).format(_with_article(" ".join([*words, noun]))) + _setting(scene, random)


def name_caption(kind: str, random: Random) -> str:
    """Name the thing and nothing else, half the time in one of TAC's prompts, the default for embedding a vocabulary."""
    noun = _noun(kind, random)
    if random.random() < 0.5:
        return random.choice(TAC_PROMPTS).format(noun)
    return random.choice(FRAMES).format(_with_article(noun))


def caption_nouns() -> list[str]:
    """Return every noun that the captions use, sorted: kinds, synonyms, hypernyms, backgrounds and words for pictures."""
    nouns = {*KINDS, *FRAME_NOUNS, *NOISE_NOUNS}
    nouns.update(*(kind.also + kind.of for kind in KINDS.values()), *BACKGROUND_NOUNS.values())
    return sorted(nouns)


def _noun(kind: str, random: Random) -> str:
    also, of = KINDS[kind].also, KINDS[kind].of
    dice = random.random()
    if dice < 0.2 and also:
        return random.choice(also)
    if dice > 0.85 and of:
        return random.choice(of)
    return kind


def _setting(scene: Scene, random: Random) -> str:
    dice = random.random()
    if dice < 0.25:
        return ""
    if dice < 0.45:
        return f" on {scene.background_color} {random.choice(BACKGROUND_NOUNS[scene.background])}"
    words = [scene.background_color] if dice < 0.85 else []
    if random.random() < 0.7:
        words.insert(0, scene.background)
    setting = " on " + _with_article(" ".join([*words, "background"]))
    return setting + f" with {random.choice(NOISE_NOUNS)}" if scene.noisy and random.random() < 0.5 else setting


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
