"""The image: the code of all modules that plugins load, in one file that is read piece by piece.

Python looks for a module in each folder of sys.path, asks for its state twice, opens and reads its .pyc, and goes through some
hundred lines of importlib for it. A call of a plugin loads 30 to 50 modules. With the image each costs one stat(2), which shows
whether its source is still the one that the image was made from, and one pread(2).

    12 bytes      magic number of the interpreter's bytecode, size of the file
    marshalled    this module's code, and the index: module -> Entry
    marshalled    the code of each module

`cni-py install` writes it (commands/images.py). A launcher checks size, owner and magic number, runs the code of this module, and
calls start() (commands/launchers.py). A module whose source has changed is loaded without the image, and so is everything where
there is no image: it makes a call faster and is needed by none.
"""

import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType
    from typing import TypeAlias

    # The file below the folder of the package; its time in nanoseconds and its size; where its code is, from the end of
    # the file, and how long; which
    # modules of the image it imports at its top
    Entry: TypeAlias = tuple[str, int, int, int, int, tuple[str, ...]]


class Image:
    """An open image. A finder of sys.meta_path for the modules that are imported by a function."""

    __slots__ = ("fd", "home", "index", "size")

    def __init__(self, fd: int, home: str, size: int, index: "dict[str, Entry]") -> None:
        self.fd = fd
        self.home = home
        self.size = size
        self.index = index

    def code(self, name: str) -> "CodeType | None":
        """The code of a module; None when its source is not the one it was made from."""
        path, modified_ns, size, offset, length, _ = self.index[name]
        try:
            seen = posix.stat(self.home + path)
            if seen.st_mtime_ns != modified_ns or seen.st_size != size:
                return None
            code = marshal.loads(posix.pread(self.fd, length, self.size + offset))
        except (OSError, ValueError, EOFError, TypeError):
            return None
        return code if type(code) is type(self.code.__code__) else None

    def load(self, name: str) -> None:
        """Import a module, and before it what it imports at its top. Nothing where the image does not have it as it is now.

        Thus the import statements in its text find all in sys.modules, and importlib's part is done once for many modules.
        """
        if (code := self.code(name)) is None:
            return
        self.load_all(self.index[name][5])
        path = self.home + self.index[name][0]
        is_package = path.endswith("/__init__.py")
        module = type(sys)(name)
        spec = ModuleSpec(name, SourceFileLoader(name, path), origin=path, is_package=is_package)
        spec.has_location = True
        module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, path
        package, _, last = name.rpartition(".")
        module.__package__ = package
        if is_package:
            module.__package__ = name
            module.__path__ = spec.submodule_search_locations = [path[:-12]]
        sys.modules[name] = module
        try:
            exec(code, module.__dict__)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        if package:
            setattr(sys.modules[package], last, module)

    def load_all(self, names: "Sequence[str]") -> None:
        """Import those that are not imported yet."""
        for name in names:
            if name not in sys.modules:
                self.load(name)

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """importlib's question of a finder. What the module imports at its top is loaded with it."""
        if name not in self.index or (code := self.code(name)) is None:
            return None
        self.load_all(self.index[name][5])
        path = self.home + self.index[name][0]
        spec = ModuleSpec(name, Loader(name, path, code), origin=path, is_package=path.endswith("/__init__.py"))
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(path[:-12])
        return spec


class Loader(SourceFileLoader):
    """Python's own loader of a source file, except that it has the code."""

    def __init__(self, name: str, path: str, code: "CodeType") -> None:
        super().__init__(name, path)
        self.ready: CodeType | None = code

    def get_code(self, fullname: str) -> "CodeType | None":
        """The code from the image for the first time; for a reload() from the source."""
        code, self.ready = self.ready, None
        return code if code is not None else super().get_code(fullname)


def start(fd: int, home: str, size: int, index: "dict[str, Entry]") -> None:
    """Import from the image from now on. `home`: the folder of the package's folder, with a final slash."""
    sys.meta_path.insert(0, Image(fd, home, size, index))  # type: ignore[arg-type]  # a finder needs find_spec() alone
