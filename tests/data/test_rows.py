"""Rows that are streamed against plain indexing, and what streaming costs in threads and memory."""

import threading
import weakref

import numpy as np
import pytest
import torch

from pipeline.data import rows
from pipeline.data.batches import ImageSet, load_sets
from pipeline.data.pairs import PairList
from pipeline.data.rows import AHEAD, Streamed, in_order, keep, resident, stream, take, together
from pipeline.data.turns import with_turns
from pipeline.errors import InputError

CPU = torch.device("cpu")
COUNT = 40


def images(count=COUNT, side=3):
    values = np.random.default_rng(0).integers(256, size=(count, 2, side, side))
    return torch.from_numpy(values.astype(np.uint8))


def streamed(tensor, places=None, kind=Streamed, device=CPU):
    content = tensor.contiguous().view(torch.uint8).numpy().reshape(len(tensor), -1)
    places = np.arange(len(tensor)) if places is None else places
    return kind(content, places, tensor.shape[1:], tensor.dtype, device)


def drawn(batches=9, size=7, seed=0):
    """Positions with repetitions, in batches of different sizes."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.integers(COUNT, size=size - n % 3)) for n in range(batches)]


def gathering():
    return [thread for thread in threading.enumerate() if thread.name == rows.GATHERING]


def nothing_gathers():
    """Threads that are at work end by themselves."""
    for thread in gathering():
        thread.join(timeout=5)
    return not gathering()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_streamed_batches_are_the_rows_by_index(dtype, shape):
    tensor = torch.rand(COUNT, *shape, generator=torch.Generator().manual_seed(0)).mul(200)
    tensor = tensor.to(dtype)
    found = list(streamed(tensor).stream(drawn()))
    assert len(found) == 9
    for batch, index in zip(found, drawn(), strict=True):
        assert batch.dtype == dtype and torch.equal(batch, tensor[index])


def test_positions_go_by_the_list_of_rows():
    places = np.array([30, 2, 2, 17])
    found = streamed(images(), places)
    assert len(found) == 4 and found.shape == (4, 2, 3, 3)
    assert torch.equal(take(found, torch.tensor([3, 0])), images()[[17, 30]])
    batches = list(in_order(found, 3))
    assert [len(batch) for batch in batches] == [3, 1]
    assert torch.equal(torch.cat(batches), images()[places])


def test_batches_that_are_kept_keep_their_content():
    """No buffer is used again for a later batch on a CPU."""
    batches = list(streamed(images()).stream(drawn()))
    copies = [batch.clone() for batch in streamed(images()).stream(drawn())]
    assert all(torch.equal(*both) for both in zip(batches, copies, strict=True))


def test_resident_rows_are_indexed_on_their_device():
    sent = together(drawn(), CPU)
    assert all(torch.equal(*both) for both in zip(sent, drawn(), strict=True))
    assert len({part.untyped_storage().data_ptr() for part in sent}) == 1
    found = list(stream(images(), zip(drawn(), sent, strict=True)))
    expected = list(stream(streamed(images()), zip(drawn(), sent, strict=True)))
    assert all(torch.equal(*both) for both in zip(found, expected, strict=True))
    assert together([], CPU) == []


def test_at_most_some_batches_are_in_memory():
    """Whatever the set's size: the one in use and those that are gathered ahead."""
    alive, most, asked = weakref.WeakSet(), 0, []

    class Counted(Streamed):
        def _buffer(self, rows, pinned=False):
            nonlocal most
            buffer = super()._buffer(rows, pinned)
            alive.add(buffer.untyped_storage())
            asked.append(buffer.nbytes)
            most = max(most, len(asked) - taken)
            return buffer

    taken = 0
    for batch in streamed(images(), kind=Counted).stream(iter(drawn(50))):
        taken += 1
        assert batch.nbytes == asked[taken - 1]
    assert len(asked) == taken == 50
    assert most == AHEAD + 1
    assert sum(sorted(asked)[-most:]) <= (AHEAD + 1) * 7 * 18


def test_positions_are_drawn_no_further_ahead_than_they_are_gathered():
    given = []

    def lazily():
        for index in drawn(20):
            given.append(index)
            yield index

    for number, _ in enumerate(streamed(images()).stream(lazily())):
        assert len(given) <= number + AHEAD + 1


def test_threads_end_with_their_batches():
    before = threading.active_count()
    batches = streamed(images()).stream(drawn())
    next(batches)
    assert nothing_gathers()  # although the epoch is not over, and nothing was closed
    list(batches)
    assert nothing_gathers() and threading.active_count() <= before


def test_threads_end_where_the_user_of_a_batch_fails():
    batches = streamed(images()).stream(drawn())
    with pytest.raises(ZeroDivisionError):
        for _ in batches:
            raise ZeroDivisionError
    assert nothing_gathers()


@pytest.mark.parametrize("failing", [0, 1, 6])
def test_what_goes_wrong_in_a_thread_reaches_the_caller(failing):
    class Broken(Streamed):
        def _gather(self, index, buffer):
            if torch.from_numpy(index).equal(drawn()[failing]):
                raise OSError("the disk is gone")
            return super()._gather(index, buffer)

    batches, found = streamed(images(), kind=Broken).stream(drawn()), []
    with pytest.raises(OSError, match="the disk is gone"):
        for batch in batches:
            found.append(batch)
    assert len(found) == failing
    assert nothing_gathers()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True], ids=["plain", "channels last"])
def test_what_is_kept_is_the_same_wherever(dtype, last):
    maps = torch.rand(COUNT, 4, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    if last:
        maps = maps.to(memory_format=torch.channels_last)
    kept = {
        place: keep(iter(maps.split(16)), COUNT, CPU, place) for place in ("resident", "streamed")
    }
    assert isinstance(kept["resident"], torch.Tensor) and isinstance(kept["streamed"], Streamed)
    assert kept["resident"].stride() == maps.stride()
    for index in drawn():
        one, other = take(kept["resident"], index), take(kept["streamed"], index)
        assert torch.equal(one, maps[index]) and torch.equal(other, maps[index])
        assert one.stride() == other.stride() == maps[index].stride()
    whole = kept["streamed"].on_cpu()
    assert torch.equal(whole, maps) and torch.equal(kept["resident"], maps)


def test_the_file_of_what_is_kept_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = keep(iter(images().split(16)), COUNT, CPU, "streamed")
    assert not list(tmp_path.iterdir())
    assert torch.equal(torch.cat(list(in_order(kept, 7))), images())


def test_no_room_for_what_is_kept_is_said(monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.raises(InputError, match=r"no room for the latents of 40 images.*set TMPDIR"):
        keep(iter(images().split(16)), COUNT, CPU, "streamed")


def test_auto_streams_what_takes_more_than_half_of_the_free_memory(monkeypatch, tmp_path):
    size = images().nbytes
    np.save(tmp_path / "images.npy", images().numpy())
    place, labels = np.arange(COUNT // 2), np.zeros(COUNT // 2, np.int64)
    lists = [(place, labels), (place + COUNT // 2, labels)]
    for free, stays in ((2 * size, True), (2 * size - 1, False)):
        monkeypatch.setattr(rows, "_free_memory", lambda device, free=free: free)
        assert resident(size, CPU, "auto") == stays
        assert resident(size, CPU, "resident") and not resident(size, CPU, "streamed")
        kept = keep(iter(images().split(16)), COUNT, CPU, "auto")
        assert isinstance(kept, torch.Tensor) == stays
        sets = load_sets(tmp_path / "images.npy", lists, CPU, "auto")
        assert [isinstance(of.pixels, torch.Tensor) for of in sets] == [stays, stays]
        found = torch.cat([batch for of in sets for batch in rows.in_order(of.pixels, 7)])
        assert torch.equal(found, images())
        turns = load_sets(tmp_path / "images.npy", lists, CPU, "auto", copies=4)
        assert not any(isinstance(of.pixels, torch.Tensor) for of in turns)


def test_free_memory_is_that_of_the_machine():
    import psutil

    assert 0 < rows._free_memory(CPU) <= psutil.virtual_memory().total


@pytest.mark.parametrize("turns", [1, 4, 8])
def test_turned_images_are_the_same_streamed(turns):
    pairs = PairList(*(np.array([0, 1]) for _ in range(3)))
    labels = torch.arange(COUNT)
    plain, _ = with_turns(ImageSet(images(), labels), pairs, turns)
    other, _ = with_turns(ImageSet(streamed(images()), labels), pairs, turns)
    assert torch.equal(torch.cat(list(rows.in_order(other.pixels, 33))), plain.pixels)
    assert torch.equal(other.labels, plain.labels)
    rng = np.random.default_rng(1)
    index = torch.from_numpy(rng.integers(turns * COUNT, size=50))
    assert torch.equal(take(other.pixels, index), plain.pixels[index])


@pytest.mark.gpu
def test_a_gpu_gets_the_same_batches_however_late_it_takes_them():
    """The device is kept busy, so that buffers would be overwritten if nothing waited."""
    device = torch.device("cuda")
    tensor = torch.rand(COUNT, 3, 64, 64)
    indices = drawn(60)
    busy, found = torch.rand(2048, 2048, device=device), []
    for batch in streamed(tensor, device=device).stream(indices):
        for _ in range(5):
            busy = (busy @ busy).clamp(max=1)
        found.append(batch.double().sum(dim=(1, 2, 3)))
    for sums, index in zip(found, indices, strict=True):
        assert torch.allclose(sums.cpu(), tensor[index].double().sum(dim=(1, 2, 3)))
