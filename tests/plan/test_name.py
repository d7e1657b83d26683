"""Names say what varies, in words, and no two are the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from prunelab.config.compose import Composer
from prunelab.launch.command.study import plan_study

MODELS = Path(__file__).resolve().parents[2] / "prunelab" / "data" / "models"
WANDA = ["method=wanda", "sparsity=unstructured"]


@pytest.fixture
def names(composer: Composer, tmp_path: Path):
    def read(*jobs: list[str]) -> list[str]:
        return [
            t.name
            for t in plan_study(composer, [[f"paths.root={tmp_path}", *job] for job in jobs], []).trials
        ]

    return read


def test_a_name_says_method_ratio_text_and_seed(names) -> None:
    assert names(["sparsity.ratio=0.30000000000000004"]) == ["surgeon-0.3-austen-s0"]
    assert names([*WANDA, "reconstruction=layer", "seed=3"]) == ["wanda-0.5-u-layer-austen-s3"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["calibration.n_samples=8"], "n_samples=8"),
        (["sparsity.within=matrix"], "within=matrix"),
        (["runtime.activation_dtype=bfloat16"], "activation_dtype=bfloat16"),
        (["model=embedded_opt"], "embedded_opt"),
        (["allocation=owl"], "owl"),
        (["evaluation.corpora=[kjv,austen]"], "corpora=kjv-austen"),
        (["calibration.joiner=' '"], "joiner="),
        (["evaluation.seq_len=64"], "seq_len=64"),
    ],
)
def test_what_varies_is_a_word(names, words: list[str], said: str) -> None:
    one, other = names(WANDA, [*WANDA, *words])
    assert one != other
    assert said in other
    assert other.startswith("wanda-0.5-u-austen-")
    assert other.endswith("-s0")


def test_a_key_of_the_same_last_word_is_told_whole(names) -> None:
    _, other = names(WANDA, [*WANDA, "evaluation.seq_len=64", "calibration.seq_len=32"])
    assert "calibration.seq_len=32-evaluation.seq_len=64" in other


def test_fields_that_only_one_option_has_are_no_words(names) -> None:
    assert names(WANDA, ["method=sparsegpt", "sparsity=unstructured"], ["method=surgeon"]) == [
        "wanda-0.5-u-austen-s0", "sparsegpt-0.5-u-austen-s0", "surgeon-0.3-austen-s0"
    ]  # fmt: skip


def test_parts_of_a_mixture_are_told_by_their_counts(names) -> None:
    words = [*WANDA, "reconstruction=block", "reconstruction_data=self_generated_mix"]
    found = names(*([*words, f"reconstruction_data.parts.self_generated={count}"] for count in (8, 16)))
    assert found == [f"wanda-0.5-u-block-self_generated_mix-austen-self_generated={n}-s0" for n in (8, 16)]


def test_local_models_bear_their_folders_names(names, tmp_path: Path) -> None:
    for place in ("a/small", "b/small", "b/large"):
        shutil.copytree(MODELS / "llama", tmp_path / place)
        (tmp_path / place / "generation_config.json").write_text(f'{{"note": "{place}"}}')
    local = [["model=local", f"model.id={tmp_path}/{place}"] for place in ("a/small", "b/small", "b/large")]
    assert names(local[0]) == ["surgeon-0.3-austen-s0"]
    assert names(*local) == [
        "surgeon-0.3-austen-small-id=a-small-s0", "surgeon-0.3-austen-small-id=b-small-s0", "surgeon-0.3-austen-large-s0"
    ]  # fmt: skip


def test_revisions_are_told_by_their_first_digits(names) -> None:
    hub = ["model=hub", "model.id=org/tiny"]
    found = names(*([*hub, f"model.revision='{digit * 40}'"] for digit in "12"))
    assert found == ["surgeon-0.3-austen-revision=11111111-s0", "surgeon-0.3-austen-revision=22222222-s0"]


def test_files_of_one_option_are_told_apart(names, tmp_path: Path) -> None:
    for seed, name in enumerate(("one.npy", "two.npy")):
        np.save(tmp_path / name, np.random.RandomState(seed).randint(0, 99, (80, 128)))
    found = names(
        *(["calibration=tokens", f"calibration.path={tmp_path}/{name}"] for name in ("one.npy", "two.npy"))
    )
    assert found == ["surgeon-0.3-tokens-path=one.npy-s0", "surgeon-0.3-tokens-path=two.npy-s0"]


@pytest.mark.parametrize("name", ["org/data", "../../etc/x", "a%j b", "x" * 240, "é" * 9])
def test_a_name_is_a_file_name(names, name: str) -> None:
    (found,) = names([f"calibration.name='{name}'"])
    assert len(found) <= 127
    assert not set(found) & set("/\\% ")
    assert ".." not in found
    assert found.isascii()
    first, second = names(
        [f"calibration.name='{name}'"], [f"calibration.name='{name}'", "calibration.n_samples=5"]
    )
    assert first != second


def test_what_units_leave_to_their_method_is_no_word_unless_it_varies(names) -> None:
    units = ["sparsity=units", "sparsity.ratio=0.2"]
    both = names([*units, "method=flap"], [*units, "method=wanda_sp"])
    assert both == ["flap-0.2-units-austen-s0", "wanda_sp-0.2-units-austen-s0"]
    varied = names([*units, "method=flap"], [*units, "method=flap", "sparsity.compensation=none"])
    assert varied[1].endswith("compensation=none-s0")
