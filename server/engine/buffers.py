"""Tensors in memory that another process maps: written once, read without a copy."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Sequence
from copyreg import dispatch_table

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes, of a tensor in shared memory


class SharedBuffer:
    """Bytes in memory that another process can map. They live as long as somebody holds or maps them."""

    def __init__(self, buffers: Iterable[memoryview]) -> None:
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("autosteer")
        else:
            with tempfile.TemporaryFile(buffering=0) as file:
                self.descriptor = os.dup(file.fileno())
        place = 0
        for buffer in buffers:
            self._write(buffer, place)
            place = _aligned(place + len(buffer))

    def _write(self, data: memoryview, place: int) -> None:
        while data:
            written = os.pwrite(self.descriptor, data, place)  # without the interpreter's lock
            data, place = data[written:], place + written

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def mapped(descriptor: int, lengths: Sequence[int]) -> list[memoryview]:
    """What another process's `SharedBuffer` holds, without a copy. The descriptor is no longer needed then."""
    places = [0]
    for length in lengths:
        places.append(_aligned(places[-1] + length))
    view = memoryview(mmap.mmap(descriptor, places[-2] + lengths[-1]))
    return [view[place : place + length] for place, length in zip(places, lengths, strict=False)]


def _aligned(place: int) -> int:
    return -(-place // _ALIGNMENT) * _ALIGNMENT


def pickled(value: object, keep: Callable[[pickle.PickleBuffer], object]) -> bytes:
    """A value without the bytes of its tensors, each of which is given to `keep`; `pickle.loads` takes them back."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol=5, buffer_callback=keep)
    pickler.dispatch_table = {**dispatch_table, Tensor: _reduced}
    pickler.dump(value)
    return file.getvalue()


def _reduced(tensor: Tensor) -> tuple[Callable[..., Tensor], tuple[object, ...]]:
    if not tensor.numel():
        return _empty, (tensor.dtype, tuple(tensor.shape))
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()  # NumPy lacks some of the dtypes
    return _rebuilt, (pickle.PickleBuffer(data.data), tensor.dtype, tuple(tensor.shape))


def _empty(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _rebuilt(buffer: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)
