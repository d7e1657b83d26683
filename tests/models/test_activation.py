"""The activation store: same values wherever they are, the budget, files that go away, damage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunelab.errors import ConfigError, StoreError
from prunelab.models.activation import GIB, Placement, open_shelf

SHAPE = (6, 4, 5)
CPU = torch.device("cpu")
SIZE = 6 * 4 * 5 * 4 / GIB  # GiB in float32


@pytest.mark.parametrize("place", ["ram", "device", "disk", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_come_back_bit_for_bit(place: str, dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)
    like = torch.empty(0, dtype=dtype)
    with open_shelf(Placement(place, None, tmp_path), dtype, CPU) as shelf:  # type: ignore[arg-type]
        store = shelf.build(*SHAPE)
        assert store.on_disk == (place == "disk")
        store.write(slice(0, 4), values[:4])
        store.write(slice(4, 6), values[4:])
        assert torch.equal(store.read(slice(0, 6), like), values)
        assert torch.equal(store.read(slice(3, 5), like), values[3:5])
        chosen = torch.tensor([5, 0, 3])
        assert torch.equal(store.read(chosen, like), values[chosen])
    assert not list(tmp_path.iterdir())


def test_auto_goes_to_disk_beyond_the_budget_and_comes_back(tmp_path: Path) -> None:
    with open_shelf(Placement("auto", 2.5 * SIZE, tmp_path), torch.float32, CPU) as shelf:
        stores = [shelf.build(*SHAPE) for _ in range(4)]
        assert [store.on_disk for store in stores] == [False, False, True, True]
        shelf.discard(stores[0])
        shelf.discard(stores[2])
        shelf.discard(None)
        assert not shelf.build(*SHAPE).on_disk
        assert len(list(shelf.folder.iterdir())) == 1


def test_a_smaller_dtype_halves_the_store_and_reads_as_the_models(tmp_path: Path) -> None:
    values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    with open_shelf(Placement("ram", None, None, torch.bfloat16), torch.float32, CPU) as shelf:
        store = shelf.build(*SHAPE)
        store.write(slice(0, 6), values)
        assert shelf.used == values.numel() * 2
        found = store.read(slice(0, 6), torch.empty(0))
        assert found.dtype == torch.float32
        assert torch.equal(found, values.bfloat16().float())


def test_mistakes_are_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"runtime\.activation_gib=.*place=ram"),
        open_shelf(Placement("ram", SIZE / 2), torch.float32, CPU) as shelf,
    ):
        shelf.build(*SHAPE)
    with (
        pytest.raises(ConfigError, match=r"runtime\.activation_place"),
        open_shelf(
            Placement("moon"),
            torch.float32,
            CPU,  # type: ignore[arg-type]
        ),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"runtime\.activation_dtype"),
        open_shelf(Placement(), torch.int64, CPU),
    ):
        pass
    with open_shelf(Placement("device"), torch.float64, CPU) as shelf:  # only files know three dtypes
        assert shelf.build(1, 2, 3).stored == torch.float64
    with (
        pytest.raises(StoreError, match="Free space there"),
        open_shelf(Placement("disk", None, tmp_path), torch.float32, CPU) as shelf,
    ):
        shelf.build(2**30, 2**12, 2**10)
