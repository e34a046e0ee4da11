"""Turns the modules of the data path into C extensions with mypyc, for a wheel of one platform.

Needs a C compiler, so it runs only with HATCH_BUILD_HOOKS_ENABLE=1; without it the wheel is pure Python. What is
compiled is `modules` in the hook's table in pyproject.toml. It is built in a copy: an extension left beside its source
would be imported in its place, and edits of the source would do nothing.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SETUP = """
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from mypyc.build import mypycify
from setuptools import setup
from setuptools.command.build_ext import build_ext

# One C file for each module, as many at once as there are cores: half the processor time of one C file for all.
class SideBySide(build_ext):
    def build_extensions(self):
        compile = self.compiler.compile

        def side_by_side(sources, **options):
            largest_first = sorted(sources, key=os.path.getsize, reverse=True)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = pool.map(lambda source: compile([source], **options), largest_first)
                return [each for objects in made for each in objects]

        self.compiler.compile = side_by_side
        super().build_extensions()

files = sys.argv[1:]
sys.argv[1:] = ["build_ext", "--inplace"]
options = ["--config-file=", "--ignore-missing-imports", *files]
extensions = mypycify(options, group_name="handrail", multi_file=True)
setup(name="handrail", packages=[], ext_modules=extensions, cmdclass={"build_ext": SideBySide})
"""


class CompiledModules(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds an extension beside the source of each module. An editable install is never compiled."""
        if version == "editable":
            return
        self.copy = tempfile.TemporaryDirectory(prefix="handrail-mypyc-")
        place = Path(self.copy.name)
        shutil.copytree(Path(self.root, "collector", "handrail"), place / "handrail")
        files = [f"handrail/{module}" for module in self.config["modules"]]
        environment = {**os.environ, "MYPYPATH": str(place)}
        command = [sys.executable, "-c", SETUP, *files]
        done = subprocess.run(command, cwd=place, env=environment, stdout=sys.stderr, check=False)
        if done.returncode:
            raise SystemExit("handrail: the data path could not be compiled; what mypyc said is above")
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        built = [path for path in place.rglob(f"*{suffix}") if "build" not in path.relative_to(place).parts]
        build_data["force_include"].update({str(path): str(path.relative_to(place)) for path in built})
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self.copy.cleanup()
