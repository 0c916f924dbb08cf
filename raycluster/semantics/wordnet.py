"""Read nouns from WordNet: from its database files, or from a lexicon that the `wn` package holds.

The package `wn` is optional, so it is imported only where its database is wanted.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from raycluster.errors import ConfigError

log = logging.getLogger(__name__)

SYSTEM_FOLDERS = (
    "/usr/share/wordnet",
    "/usr/local/WordNet-3.0/dict",
    "/usr/local/share/wordnet",
    "/opt/homebrew/opt/wordnet/dict",
    "/opt/WordNet-3.0/dict",
)


def load_wordnet(path: str | None) -> list[str]:
    """Return every lemma of every noun synset (TAC's list), with repeats, in the order of the database.

    `path`: a folder with `index.noun` and `data.noun`, or the name of a `wn` lexicon (`oewn:2024`). None: `$WNHOME` or a usual
    system folder, else the English lexicon that `wn` holds. Raises :class:`ConfigError` with the commands that install a WordNet.
    """
    if path is not None and not Path(path).expanduser().is_dir():
        return _from_wn(path)
    folders = [Path(path).expanduser()] if path is not None else list(_usual_folders())
    for folder in folders:
        if (folder / "data.noun").is_file() and (folder / "index.noun").is_file():
            log.info("vocabulary: WordNet database in %s", folder)
            try:
                return list(_lemmas(folder / "data.noun"))
            except (ValueError, IndexError) as error:
                raise ConfigError(
                    f"vocabulary.source: {folder}/data.noun is no WordNet database ({error}); {REMEDY}"
                ) from None
    if path is not None:
        raise ConfigError(f"vocabulary.path: {path} lacks `index.noun` or `data.noun`; {REMEDY}")
    return _from_wn(None)


REMEDY = (
    "install the database (`apt-get install wordnet-base`, or set WNHOME to its folder), or a lexicon "
    "(`pip install 'raycluster[wn]' && python -m wn download oewn:2024`)"
)


def _usual_folders() -> Iterator[Path]:
    home = os.environ.get("WNHOME")
    if home:
        yield from (Path(home), Path(home) / "dict")
    yield from map(Path, SYSTEM_FOLDERS)


def _lemmas(file: Path) -> Iterator[str]:
    """Yield the words of `data.noun`.

    A line has (manual page wndb): offset, file number, `n`, hexadecimal word count, then word and id in turn.
    """
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("  "):  # the licence
                continue
            fields = line.split(" ")
            yield from fields[4 : 4 + 2 * int(fields[3], 16) : 2]


def _from_wn(lexicon: str | None) -> list[str]:
    if find_spec("wn") is None:
        where = (
            "vocabulary.source: no WordNet database was found"
            if lexicon is None
            else f"vocabulary.path: {lexicon} is no folder, and the `wn` package is not installed"
        )
        raise ConfigError(f"{where}; {REMEDY}")
    import wn

    names = [
        f"{found.id}:{found.version}" for found in wn.lexicons(lexicon=lexicon or "*", lang=None if lexicon else "en")
    ]
    if not names:
        missing = (
            "vocabulary.source: no WordNet database was found, and `wn` holds no English lexicon"
            if lexicon is None
            else f"vocabulary.path: `wn` holds no lexicon {lexicon}, and no folder has that name"
        )
        raise ConfigError(f"{missing}; {REMEDY}")
    log.info("vocabulary: WordNet lexicon %s of the wn package", names[0])
    return [lemma for synset in wn.synsets(pos="n", lexicon=names[0]) for lemma in synset.lemmas()]
