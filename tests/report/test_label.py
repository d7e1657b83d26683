from by_conf import option

from prunelab.report.label import brief, flatten, label_trials


def config(method="surgeon", source="austen", **more):
    base = {
        "seed": 0,
        "model": {"name": "llama"},
        "calibration": {"name": source},
        "method": {"name": method},
    }
    base |= {"sparsity": {"pattern": "rows_columns", "ratio": 0.1}, "reconstruction": {"name": "none"}}
    return base | more


def variants(*configs):
    return [label.variant for label in label_trials(configs)]


def test_plain_study_is_method_and_calibration():
    (label,) = label_trials([config()])
    assert (label.facet, label.variant) == ("austen", "surgeon")


def test_seed_ratio_and_placement_are_no_part_of_a_label():
    other = config(seed=1, sparsity={"pattern": "rows_columns", "ratio": 0.2}, runtime={"device": "cuda"})
    assert variants(config(), other) == ["surgeon", "surgeon"]


def test_fields_that_differ_within_a_method_are_named():
    first = config(method="surgeon") | {"method": {"name": "surgeon", "step": 0.05, "damping": 0.01}}
    second = config() | {"method": {"name": "surgeon", "step": None, "damping": 0.01}}
    assert variants(first, second, config("lobd")) == ["surgeon (step=0.05)", "surgeon (step=null)", "lobd"]


def test_other_choices_join_the_variant():
    block = config(reconstruction={"name": "block", "lr": 1e-4})
    assert variants(config(), block) == ["surgeon + none", "surgeon + block"]
    n2m4 = config(sparsity={"pattern": "2:4", "ratio": 0.5})
    assert variants(config(), n2m4) == ["surgeon + rows_columns", "surgeon + 2:4"]


def test_models_and_text_make_facets():
    opt = config(model={"name": "opt"})
    facets = [label.facet for label in label_trials([config(), opt | {"calibration": {"name": "kjv"}}])]
    assert facets == ["llama · austen", "opt · kjv"]


def test_sizes_of_the_calibration_text_are_compared():
    sizes = [{"name": name, "n_samples": n, "seq_len": 64} for name, n in (("austen", 64), ("kjv", 8))]
    labels = label_trials([config(calibration=size) for size in sizes])
    assert [label.facet for label in labels] == ["austen", "kjv"]
    assert [label.variant for label in labels] == ["surgeon + 64 × 64", "surgeon + 8 × 64"]
    assert [label.mask for label in labels] == ["surgeon", "surgeon"]


def test_evaluations_that_differ_are_never_averaged():
    short, long = config(evaluation={"seq_len": 64}), config(evaluation={"seq_len": 128})
    facets = [label.facet for label in label_trials([short, long])]
    assert facets == ["austen · evaluation (seq_len=64)", "austen · evaluation (seq_len=128)"]


def test_what_a_repair_fits_to_is_named_where_it_is_not_the_masks_own():
    size = {"name": "austen", "n_samples": 8, "seq_len": 64}
    block = config(calibration=size, reconstruction={"name": "block"})
    bare = config(calibration=size, reconstruction_data={"name": "same"})
    same = block | {"reconstruction_data": {"name": "same"}}
    less, more, zero = (
        block | {"reconstruction_data": {"name": "mix", "parts": {"same": None, "self_generated": n}}}
        for n in (4, 16, 0)
    )
    assert variants(bare, same, less) == ["surgeon + none", "surgeon + block", "surgeon + block + mix"]
    assert variants(zero, less, more) == [
        "surgeon", "surgeon + mix (self_generated=4)", "surgeon + mix (self_generated=16)"
    ]  # fmt: skip


def test_flatten_keeps_lists_whole():
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": None}) == {"a.b": 1, "a.c": [1, 2], "d": None}


def test_two_revisions_of_one_model_are_two_models():
    labels = label_trials([config(model={"name": "hub", "revision": word * 40}) for word in "ab"])
    assert len({label.facet for label in labels}) == len({label.model for label in labels}) == 2


def test_what_units_leave_to_their_method_is_said_by_its_name_unless_it_varies():
    own = {"flap": "dense"}

    def units(method: str, allocation: str, compensation: str, pattern: str = "units") -> dict:
        sparsity = {
            "pattern": pattern,
            "ratio": 0.2,
            "compensation": compensation,
            "propagation": own.get(method, "pruned"),
        }
        return {"method": option("method", method), "sparsity": sparsity, "allocation": {"name": allocation}}

    flap, wanda = units("flap", "global", "bias"), units("wanda_sp", "uniform", "none")
    assert [label.variant for label in label_trials([flap, wanda])] == ["flap", "wanda_sp"]
    more = [flap, wanda, units("wanda_sp", "uniform", "bias")]
    said = [label.variant for label in label_trials(more)]
    assert "compensation" not in said[0]
    assert "compensation=none" in said[1]
    assert "compensation=bias" in said[2]
    for allocation, shown in (("uniform", False), ("global", True)):  # wanda's own, and one by hand
        mixed = [flap, units("wanda", allocation, "none", "unstructured")]
        assert (allocation in label_trials(mixed)[1].variant) == shown


def test_brief_facets_leave_out_what_all_share():
    both = brief(["llama · austen", "opt · austen"])
    assert both == {"llama · austen": "llama", "opt · austen": "opt"}
    assert brief(["llama · austen", "opt · kjv"])["opt · kjv"] == "opt · kjv"
    assert brief(["llama · austen"]) == {"llama · austen": "llama · austen"}  # nothing to tell it from
    assert brief(["austen", "kjv"]) == {"austen": "austen", "kjv": "kjv"}
    assert brief([]) == {}


def test_what_comes_between_shots_is_of_the_mask():
    other = config(between_shots={"name": "lora_surgeon", "rank": 8})
    assert variants(config(between_shots={"name": "none"}), other) == [
        "surgeon",
        "surgeon + lora_surgeon between shots",
    ]
    wider = config(between_shots={"name": "lora_surgeon", "rank": 16})
    assert variants(other, wider)[1] == "surgeon + lora_surgeon (rank=16) between shots"
