"""Compiled kernels are compiled once, found again, and never opened if they are not what was written."""

import errno
import io
import logging
import multiprocessing
import os
import shlex
import shutil
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from compilers import HERE, hand_on, make_program, needs_compiler
from torchivp.fused import cache
from torchivp.fused.cache import cache_directory, load
from torchivp.fused.compiler import CompileError, NoCompiler, find_compiler

pytestmark = needs_compiler

FIVE = 'extern "C" int number() { return 5; }'
SIX = 'extern "C" int number() { return 6; }'


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A cache directory that is not there yet, a compiler that counts its calls, and an empty temporary directory."""
    log, temporary = tmp_path / "calls", tmp_path / "temporary"
    temporary.mkdir()
    program = make_program(tmp_path / "c++", f'echo "$1" >> {log}\n{hand_on()}')

    def compiled(name="kernel"):
        return log.read_text().splitlines().count(f"{name}.cpp") if log.exists() else 0

    monkeypatch.setenv("TORCHIVP_CXX", str(program))
    monkeypatch.setenv("TORCHIVP_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(cache, "_libraries", {})
    find_compiler.cache_clear()
    cache._warn_once.cache_clear()
    # what is accepted is known: one compilation less in each test
    find_compiler().__dict__["_accepted"] = HERE._accepted
    yield SimpleNamespace(directory=tmp_path / "kernels", compiled=compiled, program=program, temporary=temporary)
    assert not list(temporary.glob("torchivp-*")), "temporary files were left behind"
    find_compiler.cache_clear()


def number(source=FIVE, name="kernel", **options):
    return load(source, name, **options).number()


def in_processes(work, count=1):
    """What `work` returns in each of some processes that start at once with nothing in memory."""
    context = multiprocessing.get_context("fork")
    results, together = context.SimpleQueue(), context.Barrier(count, timeout=60)

    def run():
        cache._libraries.clear()
        together.wait()
        results.put(work())

    processes = [context.Process(target=run) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count
    return [results.get() for _ in processes]


def entry(directory, suffix=".so"):
    (path,) = directory.glob(f"kernel-*{suffix}")
    return path


def replace(path, content):
    """Put something else in the place of a file that may be open."""
    path.unlink()
    path.write_bytes(content)


def test_memory_then_disk(here):
    first = load(FIVE, "kernel")
    assert first.number() == 5
    assert load(FIVE, "kernel", flags=[]) is first
    assert in_processes(number, 1) == [5]
    assert here.compiled() == 1
    assert {path.suffix for path in here.directory.iterdir()} == {".so", ".sha256"}


def test_a_source_and_its_flags_make_a_library(here):
    assert (number(FIVE), number(SIX), number(SIX, flags=["-O1"])) == (5, 6, 6)
    assert here.compiled() == 3


def test_the_directory_is_private(here):
    number()
    assert here.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in here.directory.iterdir()} == {0o600}


def test_two_processes_at_once(here):
    assert in_processes(number, 2) == [5, 5]
    assert 1 <= here.compiled() <= 2
    so_far = here.compiled()
    assert in_processes(number) == [5]
    assert here.compiled() == so_far
    assert len(list(here.directory.iterdir())) == 2


def test_threads_compile_a_source_once(here):
    with ThreadPoolExecutor(8) as pool:
        libraries = list(pool.map(lambda _: load(FIVE, "kernel"), range(8)))
    assert len({id(library) for library in libraries}) == 1
    assert here.compiled() == 1


def test_threads_compile_different_sources_at_the_same_time(here, monkeypatch):
    """Each compilation waits for the other to have begun."""
    both, build = threading.Barrier(2, timeout=60), type(HERE).build

    def meet(*args):
        both.wait()
        return build(*args)

    monkeypatch.setattr(type(HERE), "build", meet)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(number, [FIVE, SIX])) == [5, 6]


def test_a_process_forked_while_a_thread_compiles_does_not_wait_for_it(here):
    request = FIVE, "kernel", ()
    with cache._locks.setdefault(request, threading.Lock()):
        assert in_processes(number) == [5]


def corrupted(library, checksum):
    content = library.read_bytes()
    replace(library, content[:-100] + bytes(100 * [255]))


def truncated(library, checksum):
    replace(library, library.read_bytes()[:5000])


def emptied(library, checksum):
    replace(library, b"")


def of_another_library(library, checksum):
    replace(checksum, f"{'0' * 64}  {library.name}\n".encode())


def garbled(library, checksum):
    replace(checksum, b"\xff\x00")


def without_library(library, checksum):
    library.unlink()


def without_checksum(library, checksum):
    checksum.unlink()


def of_another_name(library, checksum):
    """A whole entry, under the name of another: the one that returns 6."""
    in_processes(lambda: number(SIX, "other"))
    for path in library, checksum:
        (other,) = path.parent.glob(f"other-*{path.suffix}")
        shutil.copy(other, path)


@pytest.mark.parametrize(
    "spoil",
    [
        corrupted,
        truncated,
        emptied,
        of_another_library,
        garbled,
        without_library,
        without_checksum,
        of_another_name,
    ],
)
def test_an_entry_that_is_not_as_it_was_written_is_made_again(spoil, here):
    in_processes(number)
    library, checksum = entry(here.directory), entry(here.directory, ".sha256")
    before = library.read_bytes(), checksum.read_bytes()
    spoil(library, checksum)
    assert in_processes(number) == [5]
    assert here.compiled() == 2
    assert (library.read_bytes(), checksum.read_bytes()) == before
    assert in_processes(number) == [5]
    assert here.compiled() == 2


def test_an_entry_that_the_system_does_not_open_is_made_again(here):
    """As that of a home directory shared with a machine of another C library."""
    in_processes(number)
    library, checksum = entry(here.directory), entry(here.directory, ".sha256")
    foreign = b"\x7fELF of another machine"
    replace(library, foreign)
    replace(checksum, cache._checksum_line(library.name, foreign))
    assert in_processes(number) == [5]
    assert here.compiled() == 2


def test_a_library_that_the_system_does_not_open_is_refused(here):
    make_program(here.program, 'while [ "$1" != -o ]; do shift; done; echo foreign > "$2"')
    with pytest.raises(CompileError, match=r"the kernel kernel cannot be compiled with .* and opened: .*/kernel\.so"):
        number()


def warned(work):
    """What `work` returns, and the warnings it gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = work()
    return result, [str(warning.message) for warning in caught]


def compiles_with_one_warning(here, *reasons):
    """Two kernels are compiled into temporary files, and it is said once why they are not kept."""
    values, (sentence,) = warned(lambda: (number(FIVE), number(SIX)))
    assert values == (5, 6)
    assert here.compiled() == 2
    assert sentence.startswith("compiled kernels are not kept, and every program compiles its own: ")
    assert sentence.endswith(". The environment variable TORCHIVP_CACHE_DIR may name a directory of yours for them")
    for reason in reasons:
        assert reason in sentence


def test_a_directory_of_another_user(here, monkeypatch):
    number()
    before = {path: path.read_bytes() for path in here.directory.iterdir()}
    cache._libraries.clear()
    monkeypatch.setattr(os, "geteuid", lambda: here.directory.stat().st_uid + 1)
    values, (sentence,) = warned(lambda: (number(FIVE), number(SIX)))
    assert values == (5, 6)
    assert here.compiled() == 3, "nothing was opened from there"
    assert f"{here.directory} belongs to another user" in sentence
    assert {path: path.read_bytes() for path in here.directory.iterdir()} == before


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_directory_that_others_can_write(mode, here):
    here.directory.mkdir()
    here.directory.chmod(mode)
    compiles_with_one_warning(here, f"{here.directory} can be written by others (chmod go-w {here.directory})")
    assert not list(here.directory.iterdir())


def test_a_directory_that_cannot_be_made(here, monkeypatch):
    here.directory.touch()
    compiles_with_one_warning(here, str(here.directory))


def test_no_home(here, monkeypatch):
    def homeless(cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TORCHIVP_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(homeless))
    compiles_with_one_warning(here, "Could not determine home directory")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_directory_that_takes_no_file(code, here, monkeypatch):
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    compiles_with_one_warning(here, os.strerror(code))
    assert not list(here.directory.iterdir()), "an unfinished file was left behind"


def test_a_read_only_directory_is_read():
    """What was compiled before is opened; what is new is compiled, and not kept."""
    nobody = 65534

    def compile_both():
        find_compiler.cache_clear()
        find_compiler().__dict__["_accepted"] = HERE._accepted
        if os.geteuid() == 0:  # who may write everywhere
            os.seteuid(nobody)
        number(FIVE)
        directory.chmod(0o500)
        cache._libraries.clear()
        result = warned(lambda: (number(FIVE), number(SIX)))
        directory.chmod(0o700)
        return result

    with tempfile.TemporaryDirectory(dir="/tmp") as folder, pytest.MonkeyPatch.context() as elsewhere:
        directory = Path(folder) / "kernels"
        elsewhere.setenv("TORCHIVP_CACHE_DIR", str(directory))
        elsewhere.setenv("TORCHIVP_CXX", shlex.join(HERE.command))
        elsewhere.setattr(tempfile, "tempdir", folder)
        Path(folder).chmod(0o777)
        ((values, (sentence,)),) = in_processes(compile_both)
        left = sorted(path.suffix for path in directory.iterdir())
        assert [path.name for path in Path(folder).iterdir()] == ["kernels"]
    assert values == (5, 6)
    assert "Permission denied" in sentence
    assert left == [".sha256", ".so"]


def test_without_a_compiler(here, monkeypatch, tmp_path):
    find_compiler.cache_clear()
    monkeypatch.setenv("TORCHIVP_CXX", str(tmp_path / "none"))
    with pytest.raises(NoCompiler, match="there is no such program"):
        number()
    assert not here.directory.exists()


@pytest.mark.parametrize("kept_in", ["directory", "temporary"])
def test_a_source_that_does_not_compile_is_kept(kept_in, here):
    source = "int broken = nowhere;\n"
    if kept_in == "temporary":
        here.directory.touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CompileError) as refusal:
            load(source, "kernel")
    first, *lines, last = str(refusal.value).splitlines()
    assert first == f"the C++ compiler {here.program} does not compile the kernel kernel:"
    assert "nowhere" in lines[0]
    path = Path(last.removeprefix("Its source is kept in "))
    assert path.parent == getattr(here, kept_in)
    assert path.read_text() == source
    with pytest.raises(CompileError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(source, "kernel")
    assert here.compiled() == 2, "it is tried again: the reason may have gone"


def test_no_room_for_temporary_files(here, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(here.temporary / "nowhere"))
    with pytest.raises(CompileError, match=r"cannot be compiled with .* and opened: .* No such file or directory"):
        number()


@pytest.mark.parametrize("changed", ["processor", "version", "compiler"])
def test_what_a_library_depends_on_leads_to_another_entry(changed, here, monkeypatch):
    in_processes(number)
    if changed == "processor":
        monkeypatch.setattr(cache, "_processor", lambda: "another")
    elif changed == "version":
        monkeypatch.setattr("torchivp.__version__", "another")
    else:
        make_program(here.program, f'[ "$1" != --version ] || echo another\n{hand_on()}')
        find_compiler.cache_clear()
    in_processes(number)
    assert len(list(here.directory.glob("*.so"))) == 2


def test_the_processor_is_known_by_what_it_can_do():
    known = cache._processor()
    assert os.uname().machine in known
    if os.uname().machine == "x86_64" and sys.platform == "linux":
        assert " sse2 " in known
        assert "MHz" not in known


@pytest.mark.parametrize(
    ("environment", "directory"),
    [
        ({"TORCHIVP_CACHE_DIR": "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b"),
        ({"TORCHIVP_CACHE_DIR": "~/b"}, "/home/me/b"),
        ({"TORCHIVP_CACHE_DIR": "b"}, "{here}/b"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/torchivp"),
        ({"XDG_CACHE_HOME": "c"}, "/home/me/{caches}/torchivp"),
        ({}, "/home/me/{caches}/torchivp"),
    ],
)
@pytest.mark.parametrize(("platform", "caches"), [("linux", ".cache"), ("darwin", "Library/Caches")])
def test_where_the_directory_is(platform, caches, environment, directory, monkeypatch):
    for name in ("TORCHIVP_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert str(cache_directory()) == directory.format(here=os.getcwd(), caches=caches)


def test_the_entries_that_were_not_used_for_longest_are_removed(here, monkeypatch):
    here.directory.mkdir(mode=0o700)
    now = time.time()

    def put(name, age, size=10_000):
        path = here.directory / name
        path.write_bytes(bytes(size))
        os.utime(path, (now - age, now - age))
        return path

    oldest = [put(f"a-{'0' * 32}{suffix}", 500.0) for suffix in (".so", ".sha256")]
    source = put(f"b-{'1' * 32}.cpp", 400.0)
    used = [put(f"c-{'2' * 32}.so", 100.0), put(f"c-{'2' * 32}.sha256", 900.0)]  # when written, and when used
    others = [put("notes.txt", 1e6), put("a-file.so", 1e6)]
    unfinished = put(f"{cache._UNFINISHED}x", 60.0)
    abandoned = put(f"{cache._UNFINISHED}y", 1e5)

    number()
    kept = [entry(here.directory), entry(here.directory, ".sha256")]
    for path in [*oldest, source, *used, *others, unfinished]:
        assert path.exists()
    assert not abandoned.exists()

    monkeypatch.setattr(cache, "_LIMIT", 20_000 + 2 * sum(path.stat().st_size for path in kept) + 1000)
    assert number(SIX) == 6
    assert not any(path.exists() for path in [*oldest, source])
    assert all(path.exists() for path in [*used, *kept, *others, unfinished])


def test_opening_an_entry_is_using_it(here):
    in_processes(number)
    path = entry(here.directory)
    os.utime(path, (1e9, 1e9))
    in_processes(number)
    assert path.stat().st_mtime > 1e9 + 1


def test_a_library_that_is_removed_at_once_is_opened_all_the_same(here, monkeypatch):
    """Another process may remove it between its writing and its opening."""
    monkeypatch.setattr(cache, "_LIMIT", 0)
    assert number() == 5
    assert not list(here.directory.iterdir())


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stderr", [Terminal, io.StringIO])
def test_who_waits_is_told(stderr, monkeypatch, caplog):
    monkeypatch.setattr(cache, "_SLOW", 0.0)
    monkeypatch.setattr(sys, "stderr", stderr())
    caplog.set_level(logging.INFO, "torchivp")
    line = "torchivp: compiling the kernel lorenz for this processor, once: it will be in /cache"
    with cache._told_if_slow("lorenz", "this processor", Path("/cache")):
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()
    assert caplog.messages == [line]
    assert sys.stderr.getvalue() == (f"{line}\n" if stderr is Terminal else "")


def test_who_does_not_wait_is_told_nothing(here, monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(cache, "_SLOW", 600.0)
    caplog.set_level(logging.INFO, "torchivp")
    number()
    assert not caplog.messages and not sys.stderr.getvalue()
