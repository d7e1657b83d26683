"""What people get wrong: a clear message that names key, value and what is allowed, and nothing is started or lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prunelab.launch.command.entry import ordered, run, with_swept_groups


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of all sorts of damage."""
    monkeypatch.setenv("PRUNELAB_HOME", str(tmp_path / "home"))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin1.txt").write_bytes("déjà vu ".encode("latin-1") * 100)
    (tmp_path / "short.txt").write_text("a few words")
    (tmp_path / "table.xls").write_text("x")
    (tmp_path / "plain").touch()
    np.save(tmp_path / "floats.npy", np.ones((4, 64)))
    np.save(tmp_path / "large.npy", np.full((80, 64), 99999))
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    whole = np.lib.format.magic(1, 0)
    (tmp_path / "cut.npy").write_bytes(whole)
    (tmp_path / "pickled_model").mkdir()
    (tmp_path / "pickled_model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pickled_model" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    source = Path(__file__).resolve().parents[2] / "prunelab" / "data" / "models" / "llama"
    (tmp_path / "cut_model").mkdir()
    for file in source.iterdir():
        data = file.read_bytes()
        (tmp_path / "cut_model" / file.name).write_bytes(
            data[: len(data) // 2] if file.suffix == ".safetensors" else data
        )
    return tmp_path


LORA = ["reconstruction=lora", "reconstruction.warmup=0"]
BETWEEN = ["between_shots=lora_surgeon"]
OF_BLOCKS = [
    "between_shots.name=layer",
    "+between_shots._target_=prunelab.reconstruction.exact.LeastSquares",
    "+between_shots.revision=3",
    "+between_shots.masks=by_pattern",
    "+between_shots.target=local",
    "+between_shots.solver=exact",
    "+between_shots.damping=0.0001",
    "+between_shots.tolerance=0.0001",
    "+between_shots.iterations=1000",
    "+between_shots.learning_rate=0.001",
]
# words of the command line -> what the message has to say
EARLY = [
    (["method=surgeonn"], ["method='surgeonn'", "kobd", "Did you mean 'surgeon'?"]),
    (["methd=surgeon"], ["methd", "Did you mean 'method'?"]),
    (["sparsity.ratoi=0.3"], ["sparsity.ratoi", "Did you mean 'sparsity.ratio'?"]),
    (["sparsity.ratio=1.5"], ["sparsity.ratio=1.5", "0 <= x < 1"]),
    (["sparsity.ratio=1"], ["sparsity.ratio=1", "0 <= x < 1"]),
    (["sparsity.ratio=-0.1"], ["sparsity.ratio=-0.1", "0 <= x < 1"]),
    (["sparsity.ratio=abc"], ["sparsity.ratio='abc'", "a number"]),
    (["sparsity.ratio=null"], ["sparsity.ratio=None", "a number"]),
    (["sparsity.pattern=2:4x"], ["sparsity.pattern", "rows_columns"]),
    (["calibration.n_samples=0"], ["calibration.n_samples=0", "an integer, x >= 1"]),
    (["calibration.n_samples=2.5"], ["calibration.n_samples=2.5", "an integer"]),
    (["calibration.seq_len=4096"], ["calibration.seq_len=4096", "at most 512", "embedded_llama"]),
    (["evaluation.seq_len=1"], ["evaluation.seq_len=1", "x >= 2"]),
    (["calibration=austin"], ["calibration='austin'", "Did you mean 'austen'?"]),
    (["calibration=text"], ["calibration.path=None", ".txt", "calibration.path=/path/to/file.txt"]),
    (["calibration=text", "calibration.path={0}/nowhere.txt"], ["calibration.path", "No file at"]),
    (["calibration=text", "calibration.path={0}/empty.txt"], ["calibration.path", "The file is empty"]),
    (["calibration=text", "calibration.path={0}/latin1.txt"], ["calibration.path", "UTF-8", "iconv"]),
    (["calibration=text", "calibration.path={0}/table.xls"], ["calibration.path", ".xls cannot be read"]),
    (["calibration=tokens", "calibration.path={0}/floats.npy"], ["calibration.path", "integers", "float64"]),
    (["calibration=tokens", "calibration.path={0}/pickled.npy"], ["calibration.path", "integers", "object"]),
    (["calibration=tokens", "calibration.path={0}/cut.npy"], ["calibration.path", "cut.npy is cut"]),
    (["model=local"], ["model.id", "Set it: model.id="]),
    (["model=local", "model.id={0}/nowhere"], ["model.id", "No folder at"]),
    (["model=local", "model.id={0}/pickled_model"], ["model.id", "safetensors", "never loaded"]),
    (["model=hub", "model.id=a/b"], ["model.revision", "Set it: model.revision="]),
    (["model=hub", "model.id=a/b", "model.revision=main"], ["model.revision='main'", "40 hex digits"]),
    (["model=llama3"], ["model='llama3'", "embedded_llama"]),
    (["evaluation.corpora=[austn]"], ["evaluation.corpora='austn'", "Did you mean 'austen'?"]),
    (["evaluation.corpora=[]"], ["evaluation.corpora=[]", "at least one corpus"]),
    (["method.damping_input=-1"], ["method.damping_input=-1", "x >= 0"]),
    (["method.step=0"], ["method.step=0", "0 < x <= 1"]),
    (["+method.damp=1"], ["method.damp=1", "Did you mean 'damping_"]),
    (["method._target_=prunelab.methods.surgeon.Surgeo"], ["method._target_", "Surgeon"]),
    (["sparsity=unstructured", "method=flap"], ["sparsity.pattern='unstructured'", "method=flap"]),
    (["method=wanda"], ["sparsity.pattern='rows_columns'", "unstructured"]),
    (["sparsity=2of4", "method=wanda", "sparsity.ratio=0.4"], ["sparsity.ratio=0.4", "0.5, what 2:4 removes"]),
    (["sparsity=2of4", "method=wanda", "sparsity.n=4"], ["sparsity.n", "n < m"]),
    (["sparsity=2of4", "method=wanda", "allocation=owl"], ["allocation='owl'", "uniform"]),
    (["sparsity=2of4", "method=wanda", "sparsity.n=2", "sparsity.m=7", "sparsity.ratio=0.714285714285714"],
     ["sparsity.m=7", "a divisor", "160"]),
    (["reconstruction=cross_block", "reconstruction.stride=3"], ["reconstruction.stride=3", "1 to 2, the window"]),
    (["reconstruction=block_gp", "model.dtype=float16"], ["model.dtype='float16'", "float32 | bfloat16"]),
    (["reconstruction=block", "reconstruction.patience=2", "calibration.n_samples=1"],
     ["reconstruction.patience=2", "null with a single sequence"]),
    (["reconstruction=lora"], ["reconstruction.warmup=100", "less than 2, the updates of 2 epochs over 32 sequences"]),
    ([*LORA, "reconstruction.masks=between"], ["reconstruction.masks='between'", "one of before"]),
    ([*LORA, "reconstruction.rank=161"], ["reconstruction.rank=161", "at most 160, the narrowest width of embedded_llama"]),
    ([*LORA, "reconstruction.rank=0"], ["reconstruction.rank=0", "an integer, x >= 1"]),
    ([*LORA, "reconstruction.dropout=1"], ["reconstruction.dropout=1", "0 <= x < 1"]),
    ([*LORA, "reconstruction.sites=[q_proj]"], ["reconstruction.sites=['q_proj']", "a list of query, key, value"]),
    ([*LORA, "reconstruction.sites=[]"], ["reconstruction.sites=[]", "at least one of query"]),
    ([*LORA, "reconstruction.masked=no"], ["reconstruction.masked", "one of through, project"]),
    ([*LORA, "reconstruction.held_out=0.99"], ["reconstruction.held_out=0.99", "one of 32 sequences to train on"]),
    ([*LORA, "reconstruction.keep=best"], ["reconstruction.held_out=0.0", "above 0 with reconstruction.keep=best"]),
    ([*LORA, "model.dtype=float16"], ["model.dtype='float16'", "float32 | bfloat16 with reconstruction=lora"]),
    ([*LORA, "reconstruction_data=self_generated", "reconstruction_data.parts.self_generated=0"],
     ["reconstruction_data.parts=", "at least one part with a window"]),
    (["method=sparsegpt", "sparsity=unstructured", "sparsity.within=row", "allocation=global"],
     ["sparsity.within='row'", "allocation='global'", "method=sparsegpt chooses in its own way"]),
    (["calibration.sampler=rows"], ["calibration.sampler='rows'", "random_windows | sequential | documents"]),
    (["calibration.split=test"], ["calibration.split='test'", "train | all"]),
    (["model=random"], ["calibration='austen'", "tokens with model=random"]),
    (["seed=99999999999"], ["seed=99999999999", "0 <= x < 4294967296"]),
    (["calibration=self_generated"], ["calibration='self_generated'", "There is reconstruction_data=self_generated."]),
    (["method=null"], ["Config group override", "Name an option"]),
    (["hydra.launcher.report=flase"], ["hydra.launcher.report='flase'", "true | false"]),
    ([*BETWEEN, "method.step=null"], ["method.step=None", "below 0.3, the ratio", "which needs several shots"]),
    ([*BETWEEN, "sparsity.ratio=0.05"], ["method.step=0.05", "below 0.05, the ratio"]),
    ([*BETWEEN, "method=wanda", "sparsity=unstructured"], ["method.step=None", "below 0.5", "Or between_shots=none."]),
    ([*BETWEEN, "model.dtype=float16"], ["model.dtype='float16'", "with between_shots=lora_surgeon"]),
    ([*BETWEEN, "between_shots.rank=161"], ["between_shots.rank=161", "at most 160, the narrowest width"]),
    ([*BETWEEN, "between_shots.warmup=1"], ["between_shots.warmup=1", "less than 1, the updates of 1 epochs over 1 sequences"]),
    ([*BETWEEN, "between_shots.share=0"], ["between_shots.share=0", "0 < x <= 1"]),
    ([*BETWEEN, "between_shots.masks=between"], ["between_shots.masks='between'", "one of before"]),
    (["between_shots=layer"], ["between_shots", "lora_surgeon"]),
    (OF_BLOCKS, ["between_shots='layer'", "a repair of scope 'model', or none", "the dense weights are gone"]),
    (["reconstruction=layer", "reconstruction.epochs=3"], ["reconstruction.epochs", "reconstruction.iterations"]),
    (["allocation=owl"], ["allocation='owl'", "global or uniform"]),
    (["sparsity.within=row"], ["sparsity.within"]),
    (["seed=-1"], ["seed=-1", "0 <= x < 4294967296"]),
    (["runtime.device=gpu"], ["runtime.device='gpu'", "cuda"]),
    (["tracking=wanbd"], ["tracking='wanbd'", "Did you mean 'wandb'?"]),
    (["study=a/b"], ["study='a/b'", "names a folder"]),
    (["+exp=surgeon_swep", "-m"], ["exp", "Did you mean 'surgeon_sweep'?"]),
    (["paths.store={0}/plain/store"], ["paths.store=", "cannot be written", "PRUNELAB_HOME"]),
    (["hydra/launcher=slrm"], ["slrm", "local"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), EARLY, ids=lambda value: " ".join(value)[:40])
def test_found_before_anything_is_started(
    words: list[str], said: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["prunelab", *(word.replace("{0}", str(place)) for word in words)]) == 1
    text = capsys.readouterr().err
    for part in said:
        assert part in text, text
    assert "Traceback" not in text
    assert not list((place / "home").glob("store/*/*"))


def test_all_mistakes_of_all_trials_at_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del place
    words = ["method=surgeonn,kobd", "sparsity.ratio=0.1,1.5,abc", "calibration=austn", "-m", "seed=0"]
    assert run(["prunelab", *words]) == 1
    text = capsys.readouterr().err
    assert text.startswith("4 mistakes in 6 trials; nothing was started.")
    assert "(trials 0, 1, 2)" in text  # the trials of the unknown method
    assert "(trials 1, 4)" in text


def test_a_mistake_hides_no_other_and_makes_up_none(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = ["calibration=text", f"calibration.path={place}/nothing.txt", "sparsity.ratio=2"]
    assert run(["prunelab", *missing]) == 1
    text = capsys.readouterr().err
    assert text.startswith("2 mistakes in 1 trial")
    assert "sparsity.ratio=2" in text
    assert "nothing.txt" in text
    # in the place of a method that there is not stands the default, which cannot do this pattern
    assert run(["prunelab", "method=wandaa", "sparsity=unstructured"]) == 1
    assert capsys.readouterr().err.startswith("1 mistake in 1 trial")


SOON_S = 2.0  # of the processor, not of a clock: the machine may be busy
SOON = [
    ("prunelab", ["method=surgeonn"], "Did you mean 'surgeon'?"),
    ("prunelab", ["method=surgeon,kobd", "sparsity.ratio=0.1,0.2,1.5", "-m"], "(trials 2, 5)"),
    ("prunelab", ["calibration=text", "calibration.path=nowhere.txt"], "No file at"),
    ("prunelab", ["model=local", "model.id={0}/pickled_model"], "never loaded"),
    ("prunelab", ["sparsity=2of4", "method=wanda", "allocation=owl"], "allocation='owl'"),
    ("prunelab.cli", ["status", "nothing"], "No study 'nothing'"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "words", "said"), SOON, ids=lambda value: str(value)[:40])
def test_told_in_less_than_two_seconds(module: str, words: list[str], said: str, place: Path) -> None:
    words = [word.replace("{0}", str(place)) for word in words]
    first = _told(module, words, said, place)
    # the first may compile what it imports
    assert first < SOON_S or _told(module, words, said, place) < SOON_S


def _told(module: str, words: list[str], said: str, place: Path) -> float:
    """Return the seconds of the processor that a mistake took to tell, in a process of its own."""
    root = Path(__file__).resolve().parents[2]
    with (place / "said").open("w+") as err:
        child = subprocess.Popen(
            [sys.executable, "-m", module, *words], cwd=place, env={**os.environ, "PYTHONPATH": str(root)}, stderr=err,
        )  # fmt: skip
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        text = err.read()
    assert child.returncode == 1, text
    assert said in text
    return usage.ru_utime + usage.ru_stime


SHORT = "calibration.split={mask:validation,held_out:train,test:test}"  # all of the mask's split is tokenized
# mistakes that only the data show: the trial fails, with the reason, and nothing else is lost
LATE = [
    (["calibration=text", "calibration.path={0}/short.txt"], ["split 'train' is empty", "longer text"]),
    (["calibration=tokens", "calibration.path={0}/large.npy", "calibration.seq_len=32"], ["vocabulary", "99999"]),
    (["model=local", "model.id={0}/cut_model", SHORT], ["model.safetensors"]),
    (["model.digest=" + "0" * 64, SHORT], ["sha256", "0000"]),
    (["calibration.digest=" + "0" * 64, SHORT], ["austen", "0000"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), LATE, ids=lambda value: " ".join(value)[:40])
def test_found_in_the_job(
    words: list[str], said: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["evaluation.corpora=[kjv]", "evaluation.held_out=[]", "evaluation.seq_len=16", "evaluation.max_samples=2",
             "evaluation.error_samples=1", "method=lobd", "hydra/launcher=inline", "hydra.launcher.report=false"]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        run(["prunelab", *(word.replace("{0}", str(place)) for word in words), *small])
    assert end.value.code == 1
    found = [
        json.loads(path.read_text())
        for path in (place / "home" / "studies" / "trial" / "failures").glob("*.json")
    ]
    assert found
    assert all(part in " ".join(note["reason"] for note in found) for part in said), found
    assert found[0]["reason"][:30] in " ".join(capsys.readouterr().out.split())


def test_overrides_on_either_side_of_the_flag() -> None:
    words = ["+exp=x", "-m", "key=1", "--config-dir", "/some/where", "method=a,b"]
    assert ordered(words) == ["+exp=x", "key=1", "method=a,b", "-m", "--config-dir", "/some/where"]
    assert ordered(["--info", "plugins"]) == ["--info", "plugins"]


def test_keys_of_swept_groups_reach_the_trials() -> None:
    words = [
        "method=wanda,sparsegpt",
        "method.block=64",
        "sparsity.ratio=0.4,0.5",
        "sparsity.n=2",
        "+method.x=1",
        "-m",
    ]
    assert with_swept_groups(words) == [words[0], "++method.block=64", *words[2:]]
    assert ordered(["--cfg", "job", "a=1"]) == ["a=1", "--cfg", "job"]


def test_planning_imports_no_torch(place: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys; from prunelab.launch.command.entry import run; code = run(['prunelab', 'hydra.launcher.dry_run=true',"
        "'method=surgeon,kobd']); import prunelab.cli, prunelab.launch.monitor.status; "
        "sys.exit(code or 'torch' in sys.modules or 'transformers' in sys.modules or 'pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
