"""The table of reward against distance."""

import pytest

from benchmarks.scales import Settings, measured

SETTINGS = Settings(num_prompts=1, num_images=2, num_particles=2, num_steps=1, seed=0)


@pytest.mark.slow
def test_rows_that_are_there_are_not_measured_again(tmp_path, monkeypatch):
    rows = measured("colour", [0.5, 2.0], SETTINGS, tmp_path)
    assert [row.reward_scale for row in rows] == [0.0, 25.0, 100.0]
    plain, weak, strong = rows
    assert plain.divergence == 0 and plain.effective_share == 1 and plain.deviation > 0
    assert plain.reward < weak.reward < strong.reward and 0 < weak.divergence < strong.divergence
    assert 1 > weak.effective_share > strong.effective_share > 0
    (tmp_path / "colour_100.json").unlink()
    assert measured("colour", [0.5, 2.0], SETTINGS, tmp_path) == rows
    monkeypatch.setattr("benchmarks.scales.Bench._draw", None)
    assert measured("colour", [0.5, 2.0], SETTINGS, tmp_path) == rows
    with pytest.raises(ValueError, match="holds a row of other settings"):
        measured("colour", [0.5], Settings(1, 2, 2, 1, seed=1), tmp_path)
