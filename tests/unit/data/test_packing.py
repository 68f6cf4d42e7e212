"""Rows: every sample once, budgets kept, shared beginnings really equal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diptych.data.batching.packing import pack
from diptych.data.sample import IMAGE_TOKEN, Image
from diptych.data.text.chat import Encoded, Fate


def encoded(picture: int | None, question: int, length: int) -> Encoded:
    """A picture of four tokens (or none), then words of this question."""
    seen = (IMAGE_TOKEN,) * 4 if picture is not None else ()
    ids = (1, *seen, *(100 + question,) * length)
    fates = (Fate.TEMPLATE, *(Fate.IMAGE,) * len(seen), *(Fate.TARGET,) * length)
    images = (Image(f"{picture}.png"),) if picture is not None else ()
    return Encoded(ids, fates, images, num_tiles=len(images))


samples = st.lists(
    st.tuples(st.none() | st.integers(0, 3), st.integers(0, 9), st.integers(1, 12)),
    min_size=1,
    max_size=30,
)


@given(samples, st.integers(1, 60), st.integers(1, 6), st.booleans())
def test_every_sample_is_in_one_row_and_budgets_hold(drawn, tokens, images, share):
    made = [encoded(*d) for d in drawn]
    rows = pack(
        made, [d[0] for d in drawn], tokens_per_row=tokens, tiles_per_row=images,
        share_images=share,
    )  # fmt: skip
    placed = sorted(m for row in rows for g in row.groups for m in g.members)
    assert placed == list(range(len(made)))
    for row in rows:
        assert row.num_tokens == sum(g.num_tokens for g in row.groups)
        assert row.num_tiles == sum(g.num_tiles for g in row.groups)
        if len(row.groups) > 1:  # what is too long for any row has one of its own
            assert row.num_tokens <= tokens and row.num_tiles <= images
        for group in row.groups:
            shared = group.prefix_length
            own = sum(len(made[m]) - shared for m in group.members)
            assert group.num_tokens == shared + own
            assert len({made[m].ids[:shared] for m in group.members}) == 1
            if len(group.members) > 1:
                assert share and len({drawn[m][0] for m in group.members}) == 1


def test_samples_share_a_picture_only_where_their_tokens_agree_up_to_its_end():
    same = [encoded(0, 1, 3), encoded(0, 2, 5), encoded(1, 1, 3)]
    other_words_before = Encoded(
        (9, *same[0].ids[1:]), same[0].fates, same[0].images
    )  # fmt: skip
    rows = pack([*same, other_words_before], [0, 0, 1, 0], tokens_per_row=100, tiles_per_row=10)
    groups = sorted(tuple(g.members) for row in rows for g in row.groups)
    assert groups == [(0, 1), (2,), (3,)]
    assert sum(row.num_tokens for row in rows) == (5 + 3 + 5) + 8 + 8


def test_rows_come_longest_first_and_the_same_each_time():
    made = [encoded(None, n, 1 + 5 * n % 11) for n in range(12)]
    first, again = (pack(made, [None] * 12, tokens_per_row=16, tiles_per_row=4) for _ in range(2))
    assert first == again
    assert [r.num_tokens for r in first] == sorted((r.num_tokens for r in first), reverse=True)
