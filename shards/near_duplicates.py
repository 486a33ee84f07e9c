"""Count how many articles are near-duplicates of another one; drop none.

Two articles are near-duplicates if their sets of runs of four words (ignoring case and punctuation
at word borders) have a resemblance (Jaccard index) of about 0.8 or more: a corrected or lightly
edited copy, not another report of the same event. The resemblance is estimated by one-permutation
MinHash (Li, Owen, Zhang, NIPS 2012; empty bins filled by rotation, Shrivastava and Li, ICML 2014)
with 64 bins of one byte each: 16 bands of 4 bins find pairs to compare, and a pair counts if 80 %
of its bins agree.

Of planted copies of articles of 500 words the method finds all at a resemblance of 0.93, 94 % at
0.87, 57 % at 0.81, 4 % at 0.71 and none at 0.60; among 20,000 unrelated articles it finds none
(tests/benchmarks/near_duplicates.py). On an idle core it takes about 60 us per article of 4 kB; the
rest of a build takes 90. datasketch's MinHash took 560, and its index holds a dict entry for each
article and band.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from shards.spool import Spool

BINS = 64
_BATCH_BYTES = 1 << 17
_BAND = 4
_WORDS = 4
# Two sets of resemblance J agree in J of the bins, and by chance in 1/256 of the rest.
_AGREE = 0.8

_BASE = np.uint64(0x9E3779B97F4A7C15)
# The inverse of the base modulo 2^64: multiplying by it divides by the base.
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))


def signatures(texts: Sequence[str]) -> np.ndarray:
    """Compute the signature of each text, uint8 ``[n, 64]``; zeros without words.

    Only the first 128 KiB of a text count.
    """
    encoded = [text.lower().encode("utf-8")[: _BATCH_BYTES - 1] + b" " for text in texts]
    lengths = np.array([len(text) for text in encoded], np.int64)
    ends = np.cumsum(lengths)
    # Few texts at a time, so that intermediate results stay in the processor's cache.
    parts, first = [np.zeros((0, BINS), np.uint8)], 0
    while first < len(texts):
        room = ends[first] - lengths[first] + _BATCH_BYTES
        last = int(np.searchsorted(ends, room, side="right"))
        of_text, words = _words(b"".join(encoded[first:last]), lengths[first:last])
        parts.append(_bins(of_text, _runs(of_text, words), last - first))
        first = last
    return np.concatenate(parts)


@lru_cache(maxsize=1)
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """Return the first powers of the base and of its inverse."""
    with np.errstate(over="ignore"):
        return (
            np.cumprod(np.full(_BATCH_BYTES, _BASE)),
            np.cumprod(np.full(_BATCH_BYTES, _INVERSE)),
        )


def _words(data: bytes, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the text and the hash of each word (a run of letters and digits).

    All characters outside ASCII count as letters, because their bytes have the high bit set.
    """
    codes = np.frombuffer(data, np.uint8)
    letters = _IS_LETTER[codes]
    edges = np.flatnonzero(np.diff(letters, prepend=False))
    starts, ends = edges[0::2], edges[1::2]
    # A word's hash is the difference of two prefix hashes, shifted to the front.
    power, inverse = _powers()
    prefix = np.zeros(len(data) + 1, np.uint64)
    with np.errstate(over="ignore"):
        np.cumsum(power[: len(data)] * (codes + np.uint64(1)), out=prefix[1:])
        hashes = (prefix[ends] - prefix[starts]) * inverse[starts]
    return np.searchsorted(np.cumsum(lengths), starts, side="right"), _mixed(hashes)


def _runs(of_text: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return the hash of each run of words; runs are shorter at a text's end."""
    runs = words.copy()
    with np.errstate(over="ignore"):
        for step in range(1, _WORDS):
            same = of_text[step:] == of_text[:-step]
            runs[:-step][same] += words[step:][same] * np.uint64(2 * step + 1)
    return _mixed(runs)


def _bins(of_text: np.ndarray, runs: np.ndarray, num_texts: int) -> np.ndarray:
    """Return the low byte of the smallest hash in each bin."""
    # Text and bin in the high half, hash in the low half: sorted, each bin begins with its minimum.
    keys = (of_text.astype(np.uint64) * np.uint64(BINS) + (runs >> np.uint64(58))) << np.uint64(32)
    keys = np.sort(keys | (runs & np.uint64(0xFFFFFFFF)))
    bins = keys >> np.uint64(32)
    firsts = np.ones(len(keys), bool)
    firsts[1:] = bins[1:] != bins[:-1]
    values = np.zeros(num_texts * BINS, np.uint8)
    full = np.zeros(num_texts * BINS, bool)
    values[bins[firsts]] = (keys[firsts] & np.uint64(0xFF)).astype(np.uint8)
    full[bins[firsts]] = True
    return _filled(values.reshape(-1, BINS), full.reshape(-1, BINS))


def _filled(values: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Fill each empty bin from the next full one in the circle, shifted by distance."""
    places = np.where(full, np.arange(BINS), 2 * BINS)
    # The next full bin at or after each bin, in the circle written twice.
    twice = np.concatenate([places, places + BINS], axis=1)
    behind = np.minimum.accumulate(twice[:, ::-1], axis=1)[:, ::-1][:, :BINS]
    taken = np.take_along_axis(values, behind % BINS, axis=1)
    moved = taken + ((behind - np.arange(BINS)) * 37).astype(np.uint8)
    return np.where(full.any(axis=1, keepdims=True), moved, np.uint8(0))


def count_near_duplicates(spools: Sequence[Spool], kept: np.ndarray) -> int:
    """Count the articles that are near-duplicates of an earlier one.

    Memory: 64 bytes per article, and about 40 while a band is sorted.

    Args:
        spools: Spools with signatures.
        kept: bool ``[n]``: whether a row is an article.
    """
    signs = np.empty((int(kept.sum()), BINS), np.uint8)
    read = done = 0
    for spool in spools:
        part = spool.signatures(BINS)[kept[read : read + spool.num_rows]]
        signs[done : done + len(part)] = part
        read, done = read + spool.num_rows, done + len(part)
    return int(near_duplicates(signs).sum())


def near_duplicates(signs: np.ndarray) -> np.ndarray:
    """Find rows that are near-duplicates of an earlier row.

    Args:
        signs: Signatures, uint8 ``[n, 64]``.

    Returns:
        bool ``[n]``.
    """
    found = np.zeros(len(signs), bool)
    # A row without words cannot be compared.
    blank = signs.max(axis=1, initial=0) == 0
    for band in range(0, BINS, _BAND):
        keys = np.ascontiguousarray(signs[:, band : band + _BAND]).view("<u4")[:, 0]
        order = np.argsort(keys, kind="stable")
        begins = np.ones(len(order), bool)
        begins[1:] = keys[order[1:]] != keys[order[:-1]]
        group = np.flatnonzero(begins)[np.cumsum(begins) - 1]
        # Compare each row with the first row in its band's group, and with its predecessor there.
        for other in (order[group], order[np.maximum(np.arange(len(order)) - 1, group)]):
            row = order[(other != order) & ~found[order] & ~blank[order]]
            earlier = other[(other != order) & ~found[order] & ~blank[order]]
            agree = (signs[row] == signs[earlier]).mean(axis=1) if len(row) else np.zeros(0)
            found[row[agree >= _AGREE]] = True
    return found


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """Mix 64-bit hashes so that each bit affects all others (the finaliser of MurmurHash3)."""
    with np.errstate(over="ignore"):
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(33))


_IS_LETTER = np.array([value > 127 or chr(value).isalnum() for value in range(256)])
