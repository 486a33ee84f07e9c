"""Invent words that can be spoken, with the frequency of each.

Words are lower-case ASCII, made of syllables, and unique. They have no meaning outside the world,
so a model can learn their meaning only from the texts.
"""

import numpy as np

_ONSETS = [*"bcdfghjklmnprstvwz", "br", "cr", "dr", "fl", "gr", "kl", "pl", "pr"]
_ONSETS += ["sh", "sk", "sl", "st", "th", "tr"]
# A syllable part that is listed twice is twice as frequent.
_VOWELS = [*"aeioaeiou", "ai", "ou"]
_CODAS = ["", "", "", "l", "m", "n", "r", "s", "t", "nd", "rk"]

_TABLE_BITS = 20
"""Resolution of the frequency table: a rare word keeps a chance of about one in a million."""


def make_words(rng: np.random.Generator, count: int) -> list[str]:
    """Invent ``count`` different words; early words are shorter, as frequent words are.

    Args:
        rng: Source of the words.
        count: Number of words.

    Returns:
        ``count`` distinct strings of a to z.
    """
    words: dict[str, None] = {}
    while len(words) < count:
        missing = count - len(words)
        # One syllable gives only some thousand words, so lengths grow with the number of words.
        fewest = 1 if len(words) < 400 else 2
        batch = min(missing, 400) if fewest == 1 else missing + missing // 4 + 16
        syllables = fewest + (rng.random(batch) < 0.35) + (rng.random(batch) < 0.1)
        longest = int(syllables.max())
        shape = (batch, longest)
        onset = rng.integers(0, len(_ONSETS), shape)
        vowel = rng.integers(0, len(_VOWELS), shape)
        coda = rng.integers(0, len(_CODAS), batch)
        for row in range(batch):
            pieces = [
                _ONSETS[onset[row, k]] + _VOWELS[vowel[row, k]] for k in range(syllables[row])
            ]
            words.setdefault("".join(pieces) + _CODAS[coda[row]])
    return list(words)[:count]


def zipf_table(count: int, exponent: float = 1.0, bits: int = _TABLE_BITS) -> np.ndarray:
    """Make a table whose uniformly drawn entries follow Zipf's law: faster than searches.

    Args:
        count: Number of words; word 0 is the most frequent.
        exponent: How fast the frequency falls with the rank.
        bits: The table has ``2**bits`` entries.

    Returns:
        int32[2**bits] of word numbers, every word at least once if there is room.
    """
    size = 1 << bits
    mass = 1.0 / np.arange(1, count + 1) ** exponent
    edges = np.cumsum(mass) / mass.sum()
    # A first entry for every word keeps rare words possible; the rest follow the law.
    spare = size - count
    if spare <= 0:
        return np.arange(size, dtype=np.int32)
    by_law = np.searchsorted(edges, (np.arange(spare) + 0.5) / spare).astype(np.int32)
    table = np.concatenate([np.arange(count, dtype=np.int32), np.minimum(by_law, count - 1)])
    return np.sort(table)
