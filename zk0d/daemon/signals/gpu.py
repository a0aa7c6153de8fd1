"""Other people's work on the GPU and its free memory, from NVML (libnvidia-ml.so.1) through ctypes.

The daemon's Python has no NVML binding, and needs four calls of it. Not for using the GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from zk0d.daemon.signals.processes import is_ours
from zk0d.daemon.signals.reading import Level, Reading, unknown

LIBRARY = "libnvidia-ml.so.1"
_MANY = 128
_NOT_SUPPORTED, _INSUFFICIENT = 3, 7


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Process(ctypes.Structure):
    """nvmlProcessInfo_t as nvmlDeviceGetComputeRunningProcesses_v3 fills it."""

    _fields_ = (("pid", ctypes.c_uint), ("memory", ctypes.c_ulonglong), ("gi", ctypes.c_uint), ("ci", ctypes.c_uint))


class Gpu:
    """Foreign compute processes stop training; too little free memory makes the trainer leave, not only pause."""

    name, every_s = "gpu", 3.0

    def __init__(self, own: Callable[[], list[int]], *, foreign_stops: bool, least_mb: float, library: str = LIBRARY):
        self._own, self._foreign_stops, self._least, self._library = own, foreign_stops, least_mb, library
        self._nvml: Any = None

    def read(self, now: float) -> Reading:
        if self._nvml is None:
            try:
                nvml = ctypes.CDLL(self._library)
            except OSError:
                self.every_s = 60.0
                return unknown(self.name, f"there is no {self._library}")
            self._check(nvml.nvmlInit_v2(), "nvmlInit")
            self._nvml, self.every_s = nvml, 3.0
        ours = self._own()
        foreign: list[int] = []
        free_mb: float | None = None
        for index in range(self._count()):
            device = ctypes.c_void_p()
            self._check(self._nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)), "the device")
            memory = _Memory()
            self._check(self._nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)), "the memory")
            free_mb = min(memory.free / 1e6, free_mb if free_mb is not None else float("inf"))
            foreign += [pid for pid in self._processes(device) if not is_ours(pid, ours)]
        return self._reading(sorted(set(foreign)), free_mb)

    def _reading(self, foreign: list[int], free_mb: float | None) -> Reading:
        if free_mb is None:
            return unknown(self.name, "NVML knows no GPU")
        says = f"{free_mb / 1000:.1f} GB free"
        if foreign:
            says = f"used by process {', '.join(map(str, foreign[:4]))}, {says}"
        short = bool(foreign) and free_mb < self._least
        level = Level.STOP if (foreign and self._foreign_stops) or short else Level.CLEAR
        return Reading(self.name, says, level, memory=short, waits="resumes when the GPU is free")

    def _count(self) -> int:
        count = ctypes.c_uint()
        self._check(self._nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)), "the number of GPUs")
        return count.value

    def _processes(self, device: ctypes.c_void_p) -> list[int]:
        count, table = ctypes.c_uint(_MANY), (_Process * _MANY)()
        status = self._nvml.nvmlDeviceGetComputeRunningProcesses_v3(device, ctypes.byref(count), table)
        if status == _NOT_SUPPORTED:
            return []
        if status != _INSUFFICIENT:
            self._check(status, "the processes")
        return [table[k].pid for k in range(min(count.value, _MANY))]

    def _check(self, status: int, what: str) -> None:
        if status:
            raise RuntimeError(f"NVML does not give {what} (error {status})")
