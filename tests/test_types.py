"""What travels says what it is, briefly."""

from __future__ import annotations

from builders import tiny_spec


def test_a_data_specification_prints_no_pixel_bounds() -> None:
    small, large = repr(tiny_spec(size=16)), repr(tiny_spec(size=64))
    assert "frame_shape=(64, 64, 3)" in large and "dataset_id='tiny/test-v0'" in large
    assert len(large) == len(small) < 300
