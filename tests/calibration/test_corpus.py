"""Embedded corpora and models: digests, splits, tokenizer; hub corpora without network and from a cache."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import shutil
import socket
import threading
import time
from pathlib import Path

import huggingface_hub.constants as constants
import pyarrow
import pyarrow.parquet as parquet
import pytest
import yaml

from prunelab.calibration import corpus, hub
from prunelab.calibration.corpus import EMBEDDED, load_corpus, open_corpus
from prunelab.calibration.sample import SAMPLERS
from prunelab.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
ROWS = json.loads((EMBEDDED / "corpora.json").read_text(encoding="utf-8"))
NAMES = ("austen", "kjv", "jargon", "pydocs")


@pytest.mark.parametrize("name", NAMES)
def test_recorded_digests_and_offsets_match_the_files(name: str, spec_of):
    row = ROWS[name]
    raw = lzma.decompress((EMBEDDED / f"{name}.txt.xz").read_bytes())
    assert hashlib.sha256(raw).hexdigest() == row["sha256"] == spec_of(name)["digest"]
    bounds = [row["splits"][split] for split in ("train", "validation", "test")]
    assert [bounds[0][0], bounds[0][1], bounds[1][1], bounds[2][1]] == [
        0,
        bounds[1][0],
        bounds[2][0],
        len(raw),
    ]
    for start, _ in bounds[1:]:
        assert raw[:start].endswith(row["separator"].encode())
        assert 0.78 < bounds[0][1] / len(raw) < 0.82


@pytest.mark.parametrize("name", NAMES)
def test_embedded_documents_join_to_the_raw_split(name: str, spec_of):
    spec = spec_of(name)
    raw = lzma.decompress((EMBEDDED / f"{name}.txt.xz").read_bytes())
    text = "".join(spec["joiner"].join(load_corpus(spec, split)) for split in ("train", "validation", "test"))
    assert text.encode() == raw
    assert spec["joiner"].join(load_corpus(spec, "all")).encode() == raw


def test_an_embedded_corpus_that_changed_is_refused(tmp_path: Path, monkeypatch, spec_of):
    shutil.copytree(EMBEDDED, tmp_path / "corpora")
    monkeypatch.setattr(corpus, "EMBEDDED", tmp_path / "corpora")
    with pytest.raises(DataError, match=f"expected sha256 {'0' * 64}, found {ROWS['kjv']['sha256']}"):
        load_corpus(spec_of("kjv") | {"digest": "0" * 64}, "train")
    corpus._embedded_raw.cache_clear()
    path = tmp_path / "corpora" / "kjv.txt.xz"
    path.write_bytes(lzma.compress(b"In the beginning"))
    with pytest.raises(DataError, match=rf"'kjv'.*expected sha256 {ROWS['kjv']['sha256']}, found"):
        load_corpus(spec_of("kjv"), "train")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"kjv\.txt\.xz cannot be read.*Reinstall"):
        load_corpus(spec_of("kjv"), "train")
    with pytest.raises(ConfigError, match=r"calibration\.id='austin'.*Did you mean 'austen'"):
        load_corpus(spec_of("austen") | {"id": "austin"}, "train")


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_embedded_models_match_their_config(name: str):
    folder = ROOT / "prunelab" / "data" / "models" / name
    spec = yaml.safe_load((ROOT / "conf" / "model" / f"embedded_{name}.yaml").read_text(encoding="utf-8"))
    weights = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == spec["digest"]
    assert len(weights) <= 8_000_000
    assert (spec["name"], spec["source"], spec["id"]) == (f"embedded_{name}", "embedded", name)


def test_tokenizer_round_trips_and_adds_nothing(tokenizer):
    text = "In the beginning; def f(x):\n    return x²  # naïve — 雪\n\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(tokenizer) == 2048
    assert max(ids) < 2048
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 0


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "calibration").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_spec_has_the_common_fields(path: Path):
    text = path.read_text(encoding="utf-8")
    spec = yaml.safe_load(text)
    common = {"name", "source", "revision", "split", "sampler", "n_samples", "seq_len", "joiner", "digest"}
    assert text.startswith("# ")
    assert common <= set(spec)
    assert spec["name"] == path.stem
    assert spec["source"] in corpus.SOURCES
    assert spec["sampler"] in (*SAMPLERS, "rows")
    if spec["source"] == "hub":
        assert set(spec["files"]) == {"train", "validation", "test"}
        assert spec["revision"]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache and a hub address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for key in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(key, raising=False)
    return tmp_path / "hub"


def cache_file(cache: Path, spec: dict, split: str, data: bytes, commit: str) -> None:
    """Put a file where the hub's client would have put it."""
    base = cache / f"datasets--{spec['id'].replace('/', '--')}"
    path = base / "snapshots" / commit / spec["files"][split]
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    if spec["revision"] != commit:
        ref = base / "refs" / spec["revision"]
        ref.parent.mkdir(parents=True)
        ref.write_text(commit)


@pytest.mark.parametrize("name", ["wikitext2", "c4", "ptb"])
@pytest.mark.parametrize("offline", [True, False])
def test_hub_corpora_without_network_say_how_to_fetch(name, offline, empty_cache, monkeypatch, spec_of):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    spec, started = spec_of(name), time.perf_counter()
    with pytest.raises(DataError) as caught:
        load_corpus(spec, "train")
    assert time.perf_counter() - started < 5
    message = str(caught.value)
    for part in (name, spec["id"], spec["revision"], spec["files"]["train"], "hf download", "HF_HOME"):
        assert part in message
    assert "embedded corpora (austen, kjv, jargon, pydocs) need no network" in message
    assert ("HF_HUB_OFFLINE is set" in message) == offline


def test_a_hub_that_never_answers_is_given_up_after_seconds(monkeypatch: pytest.MonkeyPatch):
    given_up = threading.Event()

    def hang(*_: object, **__: object) -> None:
        given_up.wait(10)
        raise TimeoutError

    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(hub.socket, "create_connection", hang)
    started = time.perf_counter()
    assert not hub._reachable("https://huggingface.co")
    assert time.perf_counter() - started < 5
    given_up.set()


def test_the_proxy_is_probed_where_one_is_set(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        assert hub._reachable("https://nowhere.invalid")
    assert not hub._reachable("https://nowhere.invalid")


def test_a_hub_that_answers_nonsense_is_reported(empty_cache, monkeypatch, spec_of):
    monkeypatch.setattr(hub, "_reachable", lambda url: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(DataError, match=r"the hub answered TimeoutError: too slow.*hf download"):
        load_corpus(spec_of("wikitext2"), "train")


def refuse(*, local_files_only: bool = False, **_: object) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError

    raise LocalEntryNotFoundError("not cached") if local_files_only else TimeoutError("too slow")


def test_cached_parquet_is_read_without_network(tmp_path: Path, empty_cache: Path, spec_of):
    spec = spec_of("ptb")
    parquet.write_table(pyarrow.table({"sentence": ["a b", "c <unk>"]}), tmp_path / "x.parquet")
    cache_file(empty_cache, spec, "test", (tmp_path / "x.parquet").read_bytes(), commit="c" * 40)
    found = open_corpus(spec, "test")
    assert found.documents == ["a b", "c <unk>"]
    assert found.commit == "c" * 40
    assert found.digest == hashlib.sha256((tmp_path / "x.parquet").read_bytes()).hexdigest()
    with pytest.raises(DataError, match=r"ptb.*has changed: expected sha256 0000"):
        load_corpus(spec | {"digest": {"test": "0" * 64}}, "test")


def test_c4_test_split_is_its_first_1100_documents(empty_cache: Path, spec_of):
    spec = spec_of("c4")
    lines = "\n".join(json.dumps({"text": f"document {i}", "url": "x"}) for i in range(1500))
    cache_file(empty_cache, spec, "test", gzip.compress(lines.encode()), commit=spec["revision"])
    documents = load_corpus(spec, "test")
    assert len(documents) == 1100
    assert documents[-1] == "document 1099"


def test_hub_specs_need_a_pin_and_a_known_split(empty_cache: Path, spec_of):
    with pytest.raises(ConfigError, match=r"calibration\.revision=None.*Pin it"):
        load_corpus(spec_of("wikitext2") | {"revision": None}, "train")
    with pytest.raises(DataError, match=r"no split 'all'; it has \['test', 'train', 'validation'\]"):
        load_corpus(spec_of("wikitext2"), "all")
    with pytest.raises(DataError, match="not a hub dataset id"):
        load_corpus(spec_of("wikitext2") | {"id": "a/b/c"}, "train")
