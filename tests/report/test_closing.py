import io

from rich.console import Console

from prunelab.report.closing import closing


def shown(folder, width=120) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None).print(closing(folder))
    return buffer.getvalue()


def test_results_then_what_failed_and_where_its_log_is(fabricate):
    folder = fabricate(methods=("surgeon", "lobd"), ratios=(0.1, 0.3), fail=["lobd-0.3-kjv-s0"])
    text = shown(folder)
    assert "calibrated on austen" in text
    assert "calibrated on kjv" in text
    assert "22.34" in text
    assert "/logs/lobd-0.3-kjv-s0.out" in text
    assert "A is <singular> after damping" in text


def test_accuracies_stand_beside_perplexities(fabricate):
    def scored(name, record):
        record["metrics"] |= {"acc/piqa": 0.625, "acc/mean": 0.625}

    text = shown(fabricate(methods=("lobd",), ratios=(0.1,), sources=("kjv",), change=scored), 160)
    assert "perplexity and accuracy, calibrated on kjv" in text
    assert "accuracy: piqa" in text
    assert "62.5%" in text


def test_brackets_are_no_markup_and_narrow_terminals_work(fabricate):
    folder = fabricate(methods=("[red]x[/]", "lobd"), ratios=(0.1,), sources=("kjv",), seeds=(0, 1))
    assert "[red]x[/]" in shown(folder)
    assert max(map(len, shown(folder, 60).splitlines())) <= 60


def test_violations_are_said_aloud(fabricate):
    def broken(name, record):
        record["metrics"]["integrity/violations"] = 2

    text = shown(fabricate(methods=("lobd",), ratios=(0.1,), sources=("kjv",), change=broken))
    assert "2 masked weights are not zero" in text
