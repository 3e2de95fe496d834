"""Writes the golden files beside it, from the formats as documented, not from the Rust code.

Standard library only. Products of two f32 are exact in f64, so rounding to f32 afterwards rounds once.
"""

import math
import pathlib
import struct

BF16_MAX = struct.unpack("<f", struct.pack("<I", 0x7F7F0000))[0]


def f32(x):
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


def bits(x):
    return struct.unpack("<I", struct.pack("<f", x))[0]


def bf16(x):
    """Bits of the nearest BF16, ties to even."""
    b = bits(x)
    return (b + 0x7FFF + ((b >> 16) & 1)) >> 16


def from_bf16(b):
    return struct.unpack("<f", struct.pack("<I", b << 16))[0]


def code(x, inv, low, high):
    y = f32(x * inv)
    return 0 if math.isnan(y) else int(round(min(max(y, low), high)))


def plane(codes):
    codes = codes + [0] * (len(codes) % 2)
    return bytes((a + 8) | (b + 8) << 4 for a, b in zip(codes[::2], codes[1::2]))


def none(values, sums):
    payload = b"".join(struct.pack("<f", x) for x in values)
    stats = [0, sum(not math.isfinite(x) for x in values)]
    return payload, stats, [f32(s + x) for s, x in zip(sums, values)]


def paper(values, ranges, outliers, sums):
    features, slots = len(values), len(values) - len(outliers)
    step = [f32(r / 7) for r in ranges]
    clipped = nonfinite = 0
    codes = {}
    decoded = [0.0] * features
    for i, x in enumerate(values):
        nonfinite += not math.isfinite(x)
        if i in outliers:
            continue
        inv = f32(1 / step[i]) if step[i] else 0.0
        outside = abs(f32(x * inv)) > 7.5 if step[i] else x != 0
        clipped += math.isfinite(x) and outside
        codes[i] = code(x, inv, -7, 7)
        decoded[i] = f32(codes[i] * step[i])
    free = [o for o in outliers if o < slots]
    tail = [i for i in range(slots, features) if i not in outliers]
    slot = dict(zip(free, tail))
    payload = plane([codes[slot.get(j, j)] for j in range(slots)])
    for o in outliers:
        x = values[o]
        b = 0 if math.isnan(x) else bf16(x)
        if b & 0x7FFF == 0x7F80:
            clipped += math.isfinite(x)
            b -= 1
        payload += struct.pack("<H", b)
        decoded[o] = from_bf16(b)
    return payload, [clipped, nonfinite], [f32(s + x) for s, x in zip(sums, decoded)]


def dynamic(values, sums):
    codes, scales, decoded = [], b"", []
    for start in range(0, len(values), 32):
        group = [0.0 if math.isnan(x) else min(max(x, -BF16_MAX), BF16_MAX) for x in values[start : start + 32]]
        extreme = max(group) if max(group) > -min(group) else min(group)
        d = from_bf16(bf16(f32(extreme / -8)))
        if abs(d) < 2.0**-126:
            d = 0.0
        inv = f32(1 / d) if d else 0.0
        c = [code(x, inv, -8, 7) for x in group]
        codes += c
        scales += struct.pack("<H", bf16(d))
        decoded += [f32(k * d) for k in c]
    stats = [0, sum(not math.isfinite(x) for x in values)]
    return plane(codes) + scales, stats, [f32(s + x) for s, x in zip(sums, decoded)]


def row(features, seed):
    """Values with a spread of magnitudes; exact in f32."""
    state, out = seed, []
    for _ in range(features):
        state = (state * 1103515245 + 12345) % 2**31
        out.append(((state >> 8) % 4001 - 2000) / 512.0)
    return out


def write(name, rows, extra):
    text = [f"codec {name}"] + extra
    for values, sums, (payload, (clipped, nonfinite), result) in rows:
        text.append("values " + " ".join(f"{bits(x):08x}" for x in values))
        text.append("before " + " ".join(f"{bits(x):08x}" for x in sums))
        text.append(f"stats {clipped} {nonfinite}")
        text.append(f"payload {payload.hex()}")
        text.append("after " + " ".join(f"{bits(x):08x}" for x in result))
    path = pathlib.Path(__file__).parent / f"{name}.txt"
    path.write_text("\n".join(text) + "\n", encoding="ascii")


def main():
    special = [math.nan, math.inf, -math.inf, f32(3.4028234e38), 0.0, -0.0, 1e-40, -1.5]
    sums = row(77, 5)

    write("none", [(v, sums[: len(v)], none(v, sums)) for v in [row(9, 1), special[1:] + [2.0, -3.0]]], [])

    # Outliers in the head, at the end, and in a whole block of vectors; a dead feature; E - k odd.
    outliers = [0, 7, 33, 71, 76]
    ranges = [f32(0.25 + (i * 37 % 100) / 25.0) for i in range(77)]
    ranges[11] = 0.0
    rows = []
    for values in [row(77, 2), special + row(61, 3) + special]:
        rows.append((values, sums, paper(values, ranges, outliers, sums)))
    extra = ["outliers " + " ".join(map(str, outliers))]
    extra.append("ranges " + " ".join(f"{bits(x):08x}" for x in ranges))
    write("paper", rows, extra)

    # Two whole groups and one of 13; all zero; below the smallest scale; beyond the BF16 range.
    rows = []
    for values in [row(77, 4), special + row(24, 6) + [0.0] * 32 + [1e-39] * 13, [-4.0, 4.0] * 16 + row(45, 7)]:
        rows.append((values, sums, dynamic(values, sums)))
    write("dynamic", rows, [])


main()
