"""The C++ compiler is found, told what it understands, and its refusals are passed on."""

import ctypes
import importlib.util
import math
import os
import shlex
import sys

import pytest

from compilers import HERE, hand_on, make_program, needs_compiler
from torchivp.fused.compiler import CompileError, Compiler, NoCompiler, find_compiler

VARIABLES = ("TORCHIVP_CXX", "CXX")
ANYWHERE = ("-march=native", "-mcpu=native", "-fno-math-errno", "-fno-trapping-math")
"""What is wanted on every system."""
FIVE = 'extern "C" int five() { return 5; }'


@pytest.fixture(autouse=True)
def nothing_found_yet(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    find_compiler.cache_clear()
    yield
    find_compiler.cache_clear()


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A directory that is the whole `PATH`, and no package ziglang."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "ziglang" else find_spec(name, *rest)
    )
    return folder


def speaking(path, version):
    """A program that answers `--version`."""
    return make_program(path, f"echo {shlex.quote(version)}")


def built(compiler, source, folder, *flags):
    folder.mkdir(exist_ok=True)
    return ctypes.CDLL(str(compiler.build(source, "kernel", flags, folder)))


def test_the_environment_comes_before_the_path(programs, tmp_path, monkeypatch):
    for name in ("g++", "clang++", "c++"):
        speaking(programs / name, name)
    own, usual = speaking(tmp_path / "own", "own"), speaking(tmp_path / "usual", "usual")
    assert find_compiler() == Compiler((str(programs / "g++"),), "g++")
    find_compiler.cache_clear()
    monkeypatch.setenv("CXX", str(usual))
    assert find_compiler().version == "usual"
    find_compiler.cache_clear()
    monkeypatch.setenv("TORCHIVP_CXX", f"{own} -m64 '-Da b'")
    assert find_compiler() == Compiler((str(own), "-m64", "-Da b"), "own")


def test_a_compiler_of_the_path_that_does_not_run_is_passed_over(programs):
    """As those of a Mac without its command line tools."""
    make_program(programs / "g++", "echo no developer tools >&2; exit 1")
    with pytest.raises(NoCompiler, match=r"g\+\+ is there, but cannot be run: no developer tools"):
        find_compiler()
    speaking(programs / "c++", "c++ 1.0")
    assert find_compiler().command == (str(programs / "c++"),)
    speaking(programs / "clang++", "clang++ 1.0")
    assert find_compiler().version == "c++ 1.0", "it is looked for once"


def test_without_a_compiler_the_message_says_how_to_get_one(programs):
    with pytest.raises(NoCompiler) as refusal:
        find_compiler()
    assert str(refusal.value) == (
        "fused kernels need a C++ compiler, and there is none: install one (Debian and Ubuntu: apt install g++; macOS: "
        'xcode-select --install), or the one that is a Python package: pip install "torchivp[fused]"; or set the '
        "environment variable TORCHIVP_CXX to the path of yours"
    )
    assert isinstance(refusal.value, RuntimeError)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("nothing-of-the-kind -O2", "and there is no such program: correct or unset it"),
        ("g++ 'open", "which is no command: No closing quotation"),
        ("false", "which does not answer --version, as a C++ compiler does: correct or unset it\nI do not"),
    ],
)
def test_a_compiler_that_was_asked_for_is_not_replaced(variable, given, sentence, programs, monkeypatch):
    make_program(programs / "false", "echo I do not; exit 1")
    speaking(programs / "g++", "g++ 1.0")
    monkeypatch.setenv(variable, given)
    with pytest.raises(NoCompiler) as refusal:
        find_compiler()
    assert f"the environment has {variable}={given!r}, {sentence}" in str(refusal.value)


def test_other_systems_are_refused(monkeypatch):
    with monkeypatch.context() as elsewhere, pytest.raises(NoCompiler) as refusal:
        elsewhere.setattr(os, "name", "nt")
        find_compiler()
    assert "on Linux and macOS only" in str(refusal.value)


@needs_compiler
def test_the_package_ziglang_stands_in(programs, tmp_path, monkeypatch):
    package = tmp_path / "site" / "ziglang"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import os, sys\n"
        "assert sys.argv[1] == 'c++'\n"
        f"command = [*{HERE.command!r}, *sys.argv[2:]]\n"
        f"os.environ['PATH'] = {os.defpath!r}\n"
        "os.execv(command[0], command)\n"
    )
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(programs))
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    compiler = find_compiler()
    assert compiler.command == (sys.executable, "-m", "ziglang", "c++", "-fno-sanitize=undefined")
    assert compiler.version == HERE.version
    assert built(compiler, FIVE, tmp_path / "work").five() == 5


@needs_compiler
@pytest.mark.parametrize(
    ("refused", "kept"),
    [
        ("-march=native", ["-mcpu=native", "-fno-math-errno", "-fno-trapping-math"]),
        ("-march=native -mcpu=native -fno-trapping-math", ["-fno-math-errno"]),
        ("-lmvec", ["-march=native", "-fno-math-errno", "-fno-trapping-math"]),
    ],
)
def test_a_compiler_is_not_given_what_it_refuses(refused, kept, tmp_path, monkeypatch):
    pattern = "|".join(f"*{flag}*" for flag in refused.split())
    program = make_program(
        tmp_path / "picky",
        f'case "$*" in {pattern}) echo "unknown option" >&2; exit 1;; esac\n'
        # that of x86 has no -mcpu=native; what is tested is which flags are asked for
        f'for flag; do shift; [ "$flag" = -mcpu=native ] || set -- "$@" "$flag"; done\n{hand_on()}',
    )
    monkeypatch.setenv("TORCHIVP_CXX", str(program))
    compiler = find_compiler()
    assert built(compiler, FIVE, tmp_path / "work").five() == 5
    assert [flag for flag in compiler._accepted if flag in ANYWHERE] == kept
    assert ("-DTORCHIVP_LIBMVEC" in compiler._accepted) == ("-lmvec" in compiler._accepted)
    assert not set(refused.split()) & set(compiler._accepted)


@needs_compiler
def test_a_compiler_that_builds_nothing_is_none(tmp_path, monkeypatch):
    program = make_program(
        tmp_path / "bare", '[ "$1" = --version ] || { echo "fatal error: cmath: No such file" >&2; exit 1; }'
    )
    monkeypatch.setenv("TORCHIVP_CXX", str(program))
    with pytest.raises(NoCompiler) as refusal:
        find_compiler().build(FIVE, "kernel", (), tmp_path)
    assert str(refusal.value).startswith(f"the C++ compiler {program} cannot build a library, and fused kernels need")
    assert 'pip install "torchivp[fused]"' in str(refusal.value)
    assert str(refusal.value).endswith("\nfatal error: cmath: No such file")


@needs_compiler
def test_a_source_that_does_not_compile(tmp_path):
    with pytest.raises(CompileError) as refusal:
        HERE.build("int broken = nowhere;\n" * 100, "kernel", (), tmp_path)
    first, *lines = str(refusal.value).splitlines()
    assert first == f"{HERE} does not compile the kernel kernel:"
    assert "nowhere" in lines[0] and len(lines) == 10


@needs_compiler
def test_a_symbol_that_is_nowhere_is_an_error_of_the_compiler(tmp_path):
    """And not one of the first solve, or a lookup that fails at its call."""
    source = 'extern "C" int of_no_library(); extern "C" int call() { return of_no_library(); }'
    with pytest.raises(CompileError, match="of_no_library"):
        HERE.build(source, "kernel", (), tmp_path)


@needs_compiler
def test_a_compiler_that_has_gone(tmp_path, monkeypatch):
    program = make_program(tmp_path / "gone", hand_on())
    monkeypatch.setenv("TORCHIVP_CXX", str(program))
    compiler = find_compiler()
    built(compiler, FIVE, tmp_path / "first")
    program.unlink()
    with pytest.raises(CompileError, match="No such file or directory"):
        built(compiler, FIVE, tmp_path / "second")


@needs_compiler
def test_nan_and_infinity_keep_their_meaning(tmp_path):
    source = """
    extern "C" int is_nan(double x) { return x != x; }
    extern "C" double difference(double x, double y) { return x - y; }
    extern "C" double quotient(double x, double y) { return x / y; }
    """
    library = built(HERE, source, tmp_path)
    for function in (library.difference, library.quotient):
        function.argtypes, function.restype = [ctypes.c_double] * 2, ctypes.c_double
    library.is_nan.argtypes = [ctypes.c_double]
    assert library.is_nan(math.nan) and not library.is_nan(math.inf)
    assert math.isnan(library.difference(math.inf, math.inf))
    assert library.quotient(-1.0, 0.0) == -math.inf


@needs_compiler
def test_the_macro_says_whether_vector_functions_are_linked(tmp_path):
    source = """
    #include <cmath>
    #ifdef TORCHIVP_LIBMVEC
    typedef double Pair __attribute__((vector_size(16)));
    extern "C" Pair _ZGVbN2v_exp(Pair);
    extern "C" double of_two(double x) { return _ZGVbN2v_exp(Pair{0, x})[1]; }
    #else
    extern "C" double of_two(double x) { return std::exp(x); }
    #endif
    """
    function = built(HERE, source, tmp_path).of_two
    function.argtypes, function.restype = [ctypes.c_double], ctypes.c_double
    assert function(1.5) == pytest.approx(math.exp(1.5), rel=1e-14)


@needs_compiler
def test_own_flags_come_last(tmp_path):
    source = 'extern "C" int value() { return VALUE; }'
    assert built(HERE, source, tmp_path, "-DVALUE=7").value() == 7
    with pytest.raises(CompileError):
        built(HERE, 'extern "C" int value() { if constexpr (true) return 1; }', tmp_path, "-std=c++11", "-Werror")


@needs_compiler
def test_the_same_source_gives_the_same_bytes(tmp_path):
    """So that two processes that write an entry at once write the same."""
    folders = tmp_path / "first", tmp_path / "second"
    for folder in folders:
        folder.mkdir()
    first, second = (HERE.build(FIVE, "kernel", (), folder).read_bytes() for folder in folders)
    assert first == second
