"""OWL: outlier shares by hand, ratios that average to what was asked, its YAML."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch
import yaml

from prunelab.allocation.owl import OWL
from prunelab.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "allocation" / "owl.yaml"


def test_share_counts_scores_above_a_multiple_of_the_blocks_mean() -> None:
    scores = [torch.tensor([[1.0, 1.0, 10.0]]), torch.tensor([[1.0], [1.0]])]  # mean 2.8 over both layers
    assert OWL("owl", 1, 3.0, 0.08).share(scores) == pytest.approx(1 / 5)
    assert OWL("owl", 1, 4.0, 0.08).share(scores) == 0


def test_ratios_average_to_the_ratio_and_follow_the_shares() -> None:
    owl = OWL("owl", 1, 5.0, 0.08)
    found = owl.ratios([0.0, 0.01, 0.04], 0.7)
    assert found == pytest.approx([0.7 + 0.2 / 3, 0.7 + 0.08 / 3, 0.7 - 0.28 / 3])
    assert owl.ratios([0.02, 0.02], 0.5) == [0.5, 0.5]
    assert owl.ratios([0.0, 0.1], 0.0) == [0.0, 0.0]


def test_a_ratio_outside_its_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"allocation\.spread=0\.4"):
        OWL("owl", 1, 5.0, 0.4).ratios([0.0, 0.1], 0.2)


def test_yaml_and_dataclass_agree() -> None:
    config = yaml.safe_load(CONF.read_text())
    assert config.pop("_target_") == "prunelab.allocation.owl.OWL"
    assert {field.name for field in fields(OWL)} == set(config)
    assert all(field.default is MISSING for field in fields(OWL))
    OWL(**config)
