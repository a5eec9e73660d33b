"""glibc keeps freed memory and denormals are 0 in the command's process, but not where Python calls ``main``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_robust import host_memory
from lit_robust.cli import main, robust_cli

BLOCKS = """
import re
from lit_robust.host_memory import keep_freed_memory

def megabytes():
    return int(re.search(r"VmRSS:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1000

def huge():
    return int(re.search(r"AnonHugePages:\\s*(\\d+)", open("/proc/self/smaps_rollup").read())[1]) / 1000

kept = keep_freed_memory()
before = megabytes()
blocks = [bytearray(b"x" * 2**23) for _ in range(16)]
between = bytearray(b"x")
pages = huge()
del blocks
print(kept, round(megabytes() - before), round(pages))
"""


def kept(**variables):
    """Whether memory is said to be kept, the megabytes that a process holds after it has freed 134, and huge ones."""
    own = {*host_memory.PARAMETERS, "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES"}
    environment = {name: value for name, value in os.environ.items() if name not in own}
    words = [sys.executable, "-c", BLOCKS]
    told = subprocess.run(words, env=environment | variables, capture_output=True, text=True, check=True).stdout
    said, held, huge = told.split()
    return said == "True", int(held), int(huge)


GLIBC = hasattr(os, "confstr") and "glibc" in os.confstr("CS_GNU_LIBC_VERSION")


@pytest.mark.skipif(not GLIBC, reason="no glibc")
def test_freed_memory_is_kept_unless_the_user_says_how_it_is_freed():
    said, held, _ = kept()
    assert said
    assert held > 130
    for variable in (*host_memory.PARAMETERS, "MALLOC_MMAP_MAX_"):
        assert not kept(**{variable: "131072"})[0], variable
    said, held, _ = kept(GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072")
    assert not said
    assert held < 30


def advisable():
    """Whether Linux gives huge pages to those who ask, and glibc is there to ask."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return GLIBC and setting.exists() and "[madvise]" in setting.read_text()


@pytest.mark.skipif(not advisable(), reason="no huge pages on request")
def test_kept_memory_lies_on_huge_pages():
    assert kept()[2] > 100
    assert kept(GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072")[2] < 30


def static(name):
    """What a Python that is linked statically raises."""
    raise OSError("dynamic loading is not supported")


def test_another_c_library_is_left_alone(monkeypatch):
    for variable in host_memory.PARAMETERS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: object())
    assert host_memory.keep_freed_memory() is False
    monkeypatch.setattr(host_memory.ctypes, "CDLL", static)
    assert host_memory.keep_freed_memory() is False


@pytest.mark.parametrize(("args", "times"), [(None, 1), (["fit"], 0)])
def test_only_the_commands_own_process_keeps_its_memory(monkeypatch, args, times):
    calls = []
    monkeypatch.setattr(sys, "argv", ["lit-robust", "fit"])
    monkeypatch.setattr(torch, "set_flush_denormal", lambda flush: None)
    monkeypatch.setattr(host_memory, "keep_freed_memory", lambda: calls.append("kept"))
    monkeypatch.setattr(robust_cli, "run", lambda args: calls.append(args))
    main(args)
    assert calls == ["kept"] * times + [["fit"]]


DENORMALS = """
import sys
import torch
from lit_robust.cli import main, robust_cli

sys.argv = ["lit-robust", sys.argv[1]]
robust_cli.run = lambda args: print((torch.full((10**6,), 1e-39) * 1).count_nonzero().item())
"""


@pytest.mark.parametrize(
    ("word", "call", "left"),
    [("fit", "main()", 0), ("fit", "main(['fit'])", 10**6), ("test", "main()", 10**6)],
)
def test_only_a_training_of_the_command_takes_denormal_numbers_for_0_in_all_threads(word, call, left):
    words = [sys.executable, "-c", DENORMALS + call, word]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert told == f"{left}\n"
