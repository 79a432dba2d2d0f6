"""Rows of a generated log, drawn in numba.

Every draw is a hash of (seed, row, counter), so a row depends on nothing but its number: chunks of any size give the
same bytes.
"""

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def mix(x):  # type: ignore[no-untyped-def]
    """splitmix64's finalizer (Steele et al. 2014)."""
    z = np.uint64(x) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def uniform(key, counter):  # type: ignore[no-untyped-def]
    """The counter-th number in [0, 1) of a stream."""
    z = mix(np.uint64(key) ^ mix(np.uint64(counter)))
    return np.float64(z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True, nogil=True)
def row_key(seed, row):  # type: ignore[no-untyped-def]
    return mix(mix(np.uint64(seed)) ^ np.uint64(row))


@njit(cache=True, nogil=True)
def row_heads(seed, rows, day_of, hour_cdf, activity, active, mean, bin_s):  # type: ignore[no-untyped-def]
    """User, second and number of candidates of each row: (n,) i32, (n,) i64, (n,) i64."""
    n = len(rows)
    user = np.empty(n, np.int32)
    time_s = np.empty(n, np.int64)
    count = np.empty(n, np.int64)
    for i in range(n):
        key = row_key(seed, rows[i])
        user[i] = min(np.searchsorted(activity, uniform(key, 0)), len(activity) - 1)
        hour = min(np.searchsorted(hour_cdf, uniform(key, 1), side="right"), 23)
        time_s[i] = day_of[i] * 86400 + hour * 3600 + np.int64(uniform(key, 2) * 3600)
        wanted = 2 + np.int64(-math.log(1.0 - uniform(key, 3)) * mean)
        room = active[time_s[i] // bin_s] // 3
        count[i] = max(2, min(min(wanted, 299), room))
    return user, time_s, count


@njit(cache=True, nogil=True)
def _pick(cumulative, lo, hi, before, u):  # type: ignore[no-untyped-def]
    """Position in [lo, hi) of a weighted draw; `before` is the weight in front of lo."""
    target = before + u * (cumulative[hi - 1] - before)
    while lo < hi - 1:
        mid = (lo + hi - 1) // 2
        if cumulative[mid] <= target:
            lo = mid + 1
        else:
            hi = mid + 1
    return lo


@njit(cache=True, nogil=True)
def draw_candidates(  # type: ignore[no-untyped-def]
    seed, rows, user, time_s, offsets, starts, active, cumulative, edges, topics, shift_s, personal, bin_s
):
    """Distinct items shown in each row, flat (offsets[-1],) i32."""
    out = np.empty(offsets[-1], np.int32)
    for i in range(len(rows)):
        key = row_key(seed, rows[i]) ^ np.uint64(0x5851F42D4C957F2D)
        counter = 0
        b = time_s[i] // bin_s
        first = 2 if time_s[i] >= shift_s[user[i]] else 0
        for j in range(offsets[i], offsets[i + 1]):
            tries = 0
            while True:
                lo, hi, before = starts[b], starts[b + 1], 0.0
                if tries < 4 and uniform(key, counter) < personal:
                    t = topics[user[i], first + (1 if uniform(key, counter + 1) < 0.5 else 0)]
                    if edges[b, t] < edges[b, t + 1]:
                        lo, hi = edges[b, t], edges[b, t + 1]
                        before = cumulative[lo - 1] if lo > starts[b] else 0.0
                if tries < 40:
                    k = _pick(cumulative, lo, hi, before, uniform(key, counter + 2))
                else:  # the head is used up: anything active
                    k = starts[b] + np.int64(uniform(key, counter + 2) * (starts[b + 1] - starts[b]))
                counter += 3
                tries += 1
                item = active[k]
                known = False
                for m in range(offsets[i], j):
                    if out[m] == item:
                        known = True
                        break
                if not known:
                    out[j] = item
                    break
    return out


@njit(cache=True, nogil=True)
def score_rows(  # type: ignore[no-untyped-def]
    user, time_s, offsets, items, bin_s, community_of, community, before, after, shift_s, user_style, temperature,
    bias, vector, style, quality, born_s, life_s, again_s, topic, fashion, affinity, style_affinity, rise_s, stale,
    fresh, length, mean,
):  # fmt: skip
    """Logit of each shown item at the reference position, without intercept: (offsets[-1],) f64."""
    dims = vector.shape[1]
    out = np.empty(offsets[-1], np.float64)
    interest = np.empty(dims, np.float64)
    for i in range(len(user)):
        u = user[i]
        b = time_s[i] // bin_s
        own = after if time_s[i] >= shift_s[u] else before
        for d in range(dims):
            interest[d] = community[b, community_of[u], d] + own[u, d]
        base = bias[u] - length * math.log((offsets[i + 1] - offsets[i]) / mean)
        for j in range(offsets[i], offsets[i + 1]):
            item = items[j]
            dot = 0.0
            for d in range(dims):
                dot += interest[d] * vector[item, d]
            taste = 0.0
            for d in range(style.shape[1]):
                taste += user_style[u, d] * style[item, d]
            age = max(time_s[i] - born_s[item], 0.0)
            appeal = fresh * (1.0 - math.exp(-age / rise_s)) * math.exp(-0.693 * age / life_s[item])
            later = age - again_s[item]
            if later > 0.0:
                appeal += fresh * math.exp(-1.386 * later / life_s[item])
            appeal -= stale * math.log2(1.0 + age / life_s[item])
            out[j] = (
                base
                + temperature[u] * (affinity * dot + style_affinity * taste)
                + quality[item]
                + appeal
                + fashion[b, topic[item]]
            )
    return out


@njit(cache=True, nogil=True)
def click_rows(seed, rows, offsets, logit, intercept, position):  # type: ignore[no-untyped-def]
    """(p, p_ref, click) of each shown item."""
    p = np.empty(offsets[-1], np.float32)
    p_ref = np.empty(offsets[-1], np.float32)
    click = np.empty(offsets[-1], np.uint8)
    for i in range(len(rows)):
        key = row_key(seed, rows[i]) ^ np.uint64(0x14057B7EF767814F)
        for j in range(offsets[i], offsets[i + 1]):
            z = logit[j] + intercept
            chance = 1.0 / (1.0 + math.exp(position * math.log(1.0 + j - offsets[i]) - z))
            p[j] = chance
            p_ref[j] = 1.0 / (1.0 + math.exp(-z))
            click[j] = 1 if uniform(key, j - offsets[i]) < chance else 0
    return p, p_ref, click


@njit(cache=True, nogil=True)
def draw_histories(seed, lengths, offsets, topics, interest, pools, pool_starts, cumulative, vector):  # type: ignore[no-untyped-def]
    """History of each user, flat (offsets[-1],) i32: old news of the user's topics, kept where interest is."""
    out = np.empty(offsets[-1], np.int32)
    n_topics = len(pool_starts) - 1
    for u in range(len(lengths)):
        key = row_key(seed, u) ^ np.uint64(0x2545F4914F6CDD1D)
        counter = 0
        for j in range(offsets[u], offsets[u + 1]):
            item = 0
            for _ in range(96):
                if uniform(key, counter) < 0.25:
                    t = topics[u, 1 if uniform(key, counter + 1) < 0.5 else 0]
                else:
                    t = np.int64(uniform(key, counter + 1) * n_topics)
                lo, hi = pool_starts[t], pool_starts[t + 1]
                counter += 4
                if lo == hi:
                    continue
                before = cumulative[lo - 1] if lo > 0 else 0.0
                item = pools[_pick(cumulative, lo, hi, before, uniform(key, counter - 2))]
                dot = 0.0
                for d in range(vector.shape[1]):
                    dot += interest[u, d] * vector[item, d]
                if uniform(key, counter - 1) < math.exp(min(6.0 * (dot - 1.0), 0.0)):
                    break
            out[j] = item
    return out
