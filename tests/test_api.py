"""The notebook functions of the README: load, take tokens, prune, measure, save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunelab
from prunelab.config.place import conf_folder
from prunelab.errors import ConfigError, ModelError
from prunelab.sparsity import mask as masking
from prunelab.sparsity.mask import Mask, Structured
from prunelab.structures.state import read_state, state_digest


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    """Tokens of kjv (4, 32) for embedded_opt: to take any, all of a split is tokenized."""
    return prunelab.load_tokens(prunelab.load_model("embedded_opt"), "kjv", n_samples=4, seq_len=32)


def test_the_six_lines(tmp_path: Path) -> None:
    model = prunelab.load_model("embedded_llama")
    tokens = prunelab.load_tokens(model, "austen", n_samples=4, seq_len=32)
    dense = prunelab.perplexity(model, "austen", n_samples=4, seq_len=32)
    state = prunelab.prune(model, tokens, method="surgeon", ratio=0.2, step=0.1)
    assert prunelab.ratios(model, state)["ratio/weights"] == pytest.approx(0.2, abs=2e-3)
    pruned = prunelab.perplexity(model, "austen", n_samples=4, seq_len=32)
    assert dense < pruned < 3 * dense
    folder = prunelab.save(model, tmp_path / "pruned")

    again = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(again(tokens).logits, model.decoder.model(tokens).logits)
    assert AutoTokenizer.from_pretrained(folder)("text")["input_ids"] == model.tokenizer("text")["input_ids"]
    reloaded = prunelab.load_model(str(folder))
    assert prunelab.perplexity(reloaded, "austen", n_samples=4, seq_len=32) == pruned


PATTERNS = {
    "surgeon": "rows_columns", "kobd": "rows_columns", "lobd": "rows_columns", "magnitude": "unstructured",
    "random": "2:4", "wanda": "2:4", "sparsegpt": "unstructured", "magnitude_sp": "units", "wanda_sp": "units",
    "flap": "units", "llm_pruner": "units", "estimation_fusion": "units", "mutual_information": "units",
    "mi_paper": "units", "mi_fast": "units", "gprune": "units", "gprune_modules": "units", "gprune_switch": "units",
    "shortgpt": "units", "sublayer_influence": "units", "surgeon_elements": "2:4", "gprune_learned": "units",
    "fusion_learned": "units", "fusion_uncertainty": "units",
}  # fmt: skip


def test_every_method_of_the_command_line_prunes_here(tokens: torch.Tensor) -> None:
    assert set(PATTERNS) == {path.stem for path in (conf_folder() / "method").glob("*.yaml")}
    for method, pattern in PATTERNS.items():
        model = prunelab.load_model("embedded_opt")
        step = {"step": None} if pattern == "rows_columns" else {}
        if method.startswith("mi_") or method == "mutual_information":  # the width is sought on few neurons
            step = {"n_samples": 16, "bw_neurons": 4}
        if method == "mi_paper":  # an eigenvalue problem a pair
            step |= {"max_trials": 500}
        if method.startswith("gprune"):  # it compares texts
            step = {"domains": [tokens.flip(0)]}
        if method == "gprune_learned":
            step |= {"steps": 2}
        if method.startswith("fusion"):
            step = {"probes": 8}
        few = (
            tokens[:2]
            if "learned" not in method and method not in ("mi_paper", "fusion_uncertainty")
            else tokens
        )
        state = prunelab.prune(model, few, method=method, pattern=pattern, ratio=0.5, **step)
        assert prunelab.ratios(model, state)["ratio/weights"] == pytest.approx(
            0.5,
            abs=1e-2 if pattern == "units" else 2e-3,  # a head is 2 % of this model
        )


@pytest.mark.parametrize("allocation", ["global", "owl"])
def test_allocations_by_name(allocation: str, tokens: torch.Tensor) -> None:
    model = prunelab.load_model("embedded_opt")
    prunelab.prune(model, tokens[:2], method="wanda", ratio=0.7, allocation=allocation, propagation="dense")


@pytest.mark.parametrize("repair", ["layer", "block", "block_gp", "cross_block"])
def test_every_repair_lowers_the_error_it_fits(repair: str, tokens: torch.Tensor) -> None:
    model = prunelab.load_model("embedded_opt")
    dense = model.decoder.model(tokens, output_hidden_states=True).hidden_states[-1]
    pruned = prunelab.prune(model, tokens, method="wanda", ratio=0.6)

    def error() -> float:
        hidden = model.decoder.model(tokens, output_hidden_states=True).hidden_states[-1]
        return float((hidden - dense).square().sum())

    before, removed = error(), {name: site.mask.removed for name, site in pruned.sites()}
    tuned = {"epochs": 2, "min_updates": 0, "batch": 2, "learning_rate": 1e-3}
    short = {"iterations": 50} if repair == "layer" else tuned
    repaired = prunelab.repair(model, pruned, tokens, method=repair, **short)
    assert error() < before
    assert {name: site.mask.removed for name, site in repaired.sites()} == removed


def test_a_repair_of_the_whole_model_lowers_the_loss_it_trains(tokens: torch.Tensor) -> None:
    model = prunelab.load_model("embedded_llama")
    pruned = prunelab.prune(model, tokens, method="flap", ratio=0.3)
    before, removed = prunelab.perplexity(model, tokens), {name: s.mask.removed for name, s in pruned.sites()}
    short = {"epochs": 4, "batch": 2, "warmup": 0, "learning_rate": 1e-3}
    rows: list[Any] = []
    repaired = prunelab.repair(model, pruned, tokens, method="lora", progress=rows.append, **short)
    assert prunelab.perplexity(model, tokens) < before
    assert {name: site.mask.removed for name, site in repaired.sites()} == removed
    assert [row["loss"] for row in rows if row["event"] == "train"]
    with pytest.raises(ConfigError, match=r"prunelab\.prune, then prunelab\.repair"):
        prunelab.prune_and_repair(model, tokens, ratio=0.5, repair="lora")
    with pytest.raises(ConfigError, match="masks='between': allowed is one of before"):
        prunelab.repair(model, pruned, tokens, method="lora", masks="between")
    with pytest.raises(ConfigError, match="a list of query"):
        prunelab.repair(model, pruned, tokens, method="lora", sites=["q_proj"])


def test_a_correction_between_shots(tokens: torch.Tensor) -> None:
    options = {"method": "surgeon_elements", "ratio": 0.3, "step": 0.15, "pattern": "unstructured"}
    digests = [
        state_digest(
            prunelab.prune(prunelab.load_model("embedded_opt"), tokens, between_shots=name, **options)
        )
        for name in (None, "none", "lora_surgeon")
    ]
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(ConfigError, match=r"below 0\.3, the ratio, with between_shots=lora_surgeon"):
        prunelab.prune(
            prunelab.load_model("embedded_opt"),
            tokens,
            between_shots="lora_surgeon",
            **options | {"step": None},
        )


def test_masks_between_repairs(tokens: torch.Tensor) -> None:
    states = {}
    short = {"epochs": 1, "min_updates": 0, "batch": 2, "learning_rate": 1e-3}
    for way in ("before", "between"):
        model = prunelab.load_model("embedded_opt")
        if way == "before":
            state = prunelab.prune(model, tokens, method="wanda", ratio=0.5)
            states[way] = prunelab.repair(model, state, tokens, **short)
        else:
            states[way] = prunelab.prune_and_repair(model, tokens, ratio=0.5, **short)
        assert prunelab.ratios(model, states[way])["ratio/weights"] == pytest.approx(0.5, abs=1e-3)
    names = states["before"].names
    keeps = [[states[way].site(name).mask.keep() for name in (names[0], names[-1])] for way in states]
    assert bool((keeps[0][0] == keeps[1][0]).all())
    assert not bool((keeps[0][1] == keeps[1][1]).all())
    with pytest.raises(ConfigError, match="prune_and_repair"):
        prunelab.repair(model, states["before"], tokens, masks="between")


def test_compact_is_smaller_and_the_same(tmp_path: Path, tokens: torch.Tensor) -> None:
    model = prunelab.load_model("embedded_opt")
    state = prunelab.prune(model, tokens, method="kobd", ratio=0.3, step=None)
    with torch.no_grad():
        masked, before = model.decoder.model(tokens).logits, model.decoder.n_parameters()
        prunelab.compact(model, state)
        assert model.decoder.n_parameters() < before
        torch.testing.assert_close(model.decoder.model(tokens).logits, masked, atol=1e-4, rtol=1e-5)
    with pytest.raises(ModelError, match=r"which only a checkpoint of form own can say"):
        prunelab.save(model, tmp_path / "small", form="padded")
    assert not (tmp_path / "small").exists()
    prunelab.save(model, tmp_path / "small")
    loaded = prunelab.load_model(str(tmp_path / "small"))
    assert loaded.decoder.n_parameters() == model.decoder.n_parameters()
    with torch.no_grad():
        torch.testing.assert_close(loaded.decoder.model(tokens).logits, masked, atol=1e-4, rtol=1e-5)


def test_a_model_of_fewer_units_is_saved_loaded_and_goes_on(tmp_path: Path, tokens: torch.Tensor) -> None:
    model = prunelab.load_model("embedded_opt")
    masks: dict[str, Mask] = {}
    for site in model.decoder.sites():
        rows, columns = (torch.ones(n, dtype=torch.bool) for n in site.linear.weight.shape)
        lines = {"fc1": rows, "fc2": columns}.get(site.path)
        if lines is not None:
            lines[: 5 + site.block] = False
        masks[site.name] = Structured(rows, columns, True)
        masking.apply(masks[site.name], site.linear.weight, site.linear.bias)
    state = read_state(model.decoder, masks).clone()
    with torch.no_grad():
        expected = model.decoder.model(tokens).logits
    prunelab.compact(model, state)
    pruned = prunelab.prune(model, tokens, method="wanda", ratio=0.2).clone()
    with pytest.raises(ModelError, match=r"compacted\. Save it and load that folder"):
        prunelab.repair(model, pruned, tokens, method="layer")
    assert state_digest(
        read_state(model.decoder, {name: pruned.site(name).mask for name in pruned.names})
    ) == (state_digest(pruned))  # nothing was changed
    model = prunelab.load_model("embedded_opt")
    prunelab.compact(model, state)
    small = prunelab.load_model(str(prunelab.save(model, tmp_path / "small")))
    with torch.no_grad():
        torch.testing.assert_close(small.decoder.model(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    again = prunelab.prune(small, tokens, method="wanda", ratio=0.2)
    again = prunelab.repair(small, again, tokens, method="layer", iterations=20)
    assert prunelab.ratios(small, again)["ratio/weights"] == pytest.approx(0.2, abs=0.01)


def test_mistakes(tmp_path: Path, tokens: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"model='embeded_llama'.*Did you mean 'embedded_llama'"):
        prunelab.load_model("embeded_llama")
    with pytest.raises(ConfigError, match="revision"):
        prunelab.load_model("meta-llama/Llama-2-7b-hf")
    model = prunelab.load_model("embedded_opt")
    with pytest.raises(ConfigError, match="corpus"):
        prunelab.load_tokens(model, "austin")
    with pytest.raises(ConfigError, match=r"ratio=1\.5"):
        prunelab.prune(model, tokens, ratio=1.5)
    with pytest.raises(ConfigError, match="method"):
        prunelab.prune(model, tokens, method="surgeonn")
    with pytest.raises(ConfigError, match="dampin"):
        prunelab.prune(model, tokens, ratio=0.3, dampin=1.0)
    with pytest.raises(ConfigError, match=r"step=0: allowed is .*0 < x <= 1"):
        prunelab.prune(model, tokens, ratio=0.3, step=0)
    with pytest.raises(
        ConfigError, match=r"sparsity.pattern='rows_columns': allowed is what method=wanda can do"
    ):
        prunelab.prune(model, tokens, method="wanda", pattern="rows_columns", ratio=0.5)
    with pytest.raises(ConfigError, match=r"ratio=None"):
        prunelab.prune(model, tokens, method="wanda")


def test_importing_prunelab_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, prunelab; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_may_be_named_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    source = Path(prunelab.__file__).parent / "data" / "models" / "llama"
    (tmp_path / "m").symlink_to(source)
    assert prunelab.load_model("~/m").decoder.max_len == 512
    with pytest.raises(ConfigError, match="No folder at"):
        prunelab.load_model("~/n")
