"""The parts of the build that pyproject.toml cannot say: the C extension of the CPU kernels, and of which commit it is.

No torch, no OpenMP and no C++ library is needed to build it. Each instruction set is a file compiled with its own
flags; which one runs is decided on the user's machine. Without a compiler the package installs all the same, with a
warning: packed weights are then expanded to dense.
"""

import os
import platform
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
SOURCES = "serve/kernels/cpu/src"
IS_X86 = platform.machine().lower() in ("x86_64", "amd64") and os.name == "posix"
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
AVX512_BF16 = [*AVX512, "-mavx512bf16", "-mavx512vbmi", "-mavx512vnni"]
FLAGS = {"pack.cpp": [], "expand.cpp": [], "bandwidth.cpp": [], "step.cpp": []}
if IS_X86:
    FLAGS |= {
        "avx2.cpp": AVX2,
        "avx512.cpp": AVX512,
        "avx512bf16.cpp": AVX512_BF16,
        "avx512_expand.cpp": AVX512_BF16,
    }
COMMON = [
    "-O3",
    "-std=c++17",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-g0",
    "-Wall",
    "-Wextra",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
]


class BuildKernels(build_ext):
    """Compiles the C++ files with their own flags and links them into the C module."""

    def build_extension(self, extension):
        try:
            extension.extra_objects = [
                built
                for name, flags in FLAGS.items()
                for built in self.compiler.compile(
                    [f"{SOURCES}/{name}"], output_dir=self.build_temp, extra_postargs=COMMON + flags
                )
            ]
            super().build_extension(extension)
        except Exception as error:
            print(
                f"\nWARNING: twofour's CPU kernels were not built ({error}). Packed weights will be expanded to dense,"
                "\nwithout any gain in speed or memory; install a C++ compiler and reinstall.\n",
                file=sys.stderr,
            )
            raise


def commit() -> str:
    """Of what is built: a file in an sdist says it, the variable for an image, else git, + where files differ."""
    carried = HERE / "root" / "commit.txt"
    if carried.exists():
        return carried.read_text()
    if "TWOFOUR_COMMIT" in os.environ or not (HERE / ".git").exists():
        return os.environ.get("TWOFOUR_COMMIT", "")
    asked = ("git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*")
    try:
        return subprocess.run(asked, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


class BuildPackages(build_py):
    """Puts the commit beside the version, for `twofour --version`; an editable install has none, for it changes."""

    def run(self):
        super().run()
        if not self.editable_mode and (found := commit()):
            Path(self.build_lib, "twofour", "commit.txt").write_text(found)


class Sdist(sdist):
    """Takes the commit along: where it is unpacked there is no git."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        if found := commit():
            Path(base_dir, "root", "commit.txt").write_text(found)


setup(
    ext_modules=[
        Extension(
            "twofour.serve.kernels.cpu._cpu",
            [f"{SOURCES}/module.c"],
            depends=glob(f"{SOURCES}/*"),
            define_macros=[("Py_LIMITED_API", "0x030B0000"), ("TWOFOUR_X86", str(int(IS_X86)))],
            extra_compile_args=["-O2", "-fvisibility=hidden", "-g0"],  # Python's own flags have -g: paths of the build
            py_limited_api=True,
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels, "build_py": BuildPackages, "sdist": Sdist},
    include_package_data=False,  # the C++ sources belong into the sdist, not into the wheel
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
