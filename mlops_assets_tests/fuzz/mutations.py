"""Damage to bytes: what disks, networks, editors and careless programs do to a file.

A case is named by its number alone, so that any of them can be made again.
"""

from __future__ import annotations

import gzip
import io
import random
import zipfile
from collections.abc import Callable, Sequence

Mutate = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

_BYTES = [b"\0", b"\xff", b"\x7f", b"\x80", b"\n", b"\t", b'"', b",", b"{", b"}", b"[", b"]", b":"]
_TOKENS = [
    b"\r", b"\r\n\r\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe2\x80\xa8", b"\xc3\x28", b"\xed\xa0\x80",
    b"null", b"NaN", b"-Infinity", b"1e999", b"-0", b"0x1", b"9" * 30, b"true", b"~", b"{}", b"[]",
    b"- ", b"&a ", b"*a", b"<<: ", b"!!binary ", b"? ", b"|\n", b"---\n", b"...\n", b"%YAML 1.3\n",
    b"2024-02-30", b"0000-00-00", b"\\ud800", b"'", b"#", b"PAR1", b"PK\x03\x04", b"\x1f\x8b",
    b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\x80", b"\xff" * 8,
]  # fmt: skip
_TIMES = [1, 1, 1, 1, 2, 3]  # places that are changed


def damaged(random: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Change some places of a file, or cut it, or put a part of another one into it."""
    for _ in range(random.choice(_TIMES)):
        content = random.choice(_CHANGES)(random, content, others)
    return content


def damaged_zip(random: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Change a member of a zip archive and leave the archive whole, or damage the archive."""
    if random.random() < 0.3:
        return damaged(random, content, others)
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(output, "w") as new:
        names = old.namelist()
        chosen = random.choice(names)
        for name in names:
            member = old.read(name)
            if name == chosen:
                if random.random() < 0.05:
                    continue
                member = damaged(random, member, [old.read(random.choice(names))])
            new.writestr(zipfile.ZipInfo(name), member)
    return output.getvalue()


def damaged_gzip(random: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Change what is compressed, or the compressed file."""
    if random.random() < 0.3:
        return damaged(random, content, others)
    plain = [gzip.decompress(other) for other in others]
    return gzip.compress(damaged(random, gzip.decompress(content), plain), 1)


def _flip(random: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    at = random.randrange(len(content) or 1)
    return (
        content[:at]
        + bytes(b ^ (1 << random.randrange(8)) for b in content[at : at + 1])
        + (content[at + 1 :])
    )


def _overwrite(random: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    at = random.randrange(len(content) or 1)
    new = random.choice(_BYTES) * random.choice([1, 1, 2, 4, 8])
    return content[:at] + new + content[at + len(new) :]


def _insert(random: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    at = random.randint(0, len(content))
    return content[:at] + random.choice([*_BYTES, *_TOKENS]) + content[at:]


def _remove(random: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    at = random.randrange(len(content) or 1)
    return content[:at] + content[at + random.choice([1, 2, 4, 8, 64]) :]


def _cut(random: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    return content[: random.randint(0, len(content))]


def _repeat(random: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    start, end = sorted(random.randint(0, len(content)) for _ in range(2))
    return content[:end] + content[start : min(end, start + 4096)] + content[end:]


def _swap(random: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    lines = content.split(b"\n")
    one, other = random.randrange(len(lines)), random.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"\n".join(lines)


def _splice(random: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    other = random.choice(others)
    return content[: random.randint(0, len(content))] + other[random.randint(0, len(other)) :]


def _end(random: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Change the last part alone, where Parquet and zip have their tables of contents."""
    start = max(len(content) - 2048, 0)
    change = random.choice([_flip, _overwrite, _insert, _remove])
    return content[:start] + change(random, content[start:], others)


_SMALL = [_flip, _overwrite, _insert, _remove]
_CHANGES = [*_SMALL * 4, *[_end] * 4, _repeat, _cut, _swap, _splice]
