"""The image: the code of all modules that plugins load, in one file that is read piece by piece.

Python looks for a module in each folder of sys.path, asks for its state twice, opens and reads its .pyc, and goes through some
hundred lines of importlib for it. A call of a plugin loads 30 to 50 modules. With the image each costs one stat(2), which shows
whether its source is still the one that the image was made from; modules that the same plugins load are read at once.

    12 bytes      magic number of the interpreter's bytecode, size of the file
    marshalled    this module's code; module -> number of its group; where each group is; extension module -> its file
    marshalled    each group: module -> Entry

`cni-py install` writes it (commands/images.py). A launcher checks size, owner and magic number, runs the code of this module, and
calls start() (commands/launchers.py). A module whose source has changed is loaded without the image, and so is everything where
there is no image: it makes a call faster and is needed by none.
"""

import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader, SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType
    from typing import Any, TypeAlias

    # Where the module's file is below the folder of the package; its time in nanoseconds and its size; the modules that it
    # imports at its top; its code
    Entry: TypeAlias = tuple[str, int, int, tuple[str, ...], CodeType]
    # Where a group begins, from the end of the file (negative), and its length
    Place: TypeAlias = tuple[int, int]


class Image:
    """An open image. A finder of sys.meta_path for the modules that are imported by a function."""

    __slots__ = ("entries", "extensions", "fd", "groups", "home", "places", "size")

    def __init__(
        self,
        fd: int,
        home: str,
        size: int,
        groups: "dict[str, int]",
        places: "list[Place]",
        extensions: "dict[str, str]",
    ) -> None:
        self.fd = fd
        self.home = home
        self.size = size
        self.groups = groups
        self.places = places
        self.extensions = extensions
        self.entries: dict[str, Entry] = {}

    def entry(self, name: str) -> "Entry | None":
        """What the image has of a module, once; None when its source is not the one it was made from."""
        try:
            if name not in self.entries:
                offset, length = self.places[self.groups[name]]
                block = posix.pread(self.fd, length, self.size + offset)
                self.entries.update(marshal.loads(block))  # noqa: S302  as trusted as a .pyc: a launcher has looked whose it is
            entry = self.entries.pop(name)
            seen = posix.stat(self.home + entry[0])
        except (OSError, LookupError, ValueError, EOFError, TypeError):
            self.groups.pop(name, None)
            return None
        del self.groups[name]
        return entry if seen.st_mtime_ns == entry[1] and seen.st_size == entry[2] else None

    def load(self, name: str) -> None:
        """Import a module, and before it what it imports at its top. Nothing where the image does not have it as it is now.

        Thus the import statements in its text find all in sys.modules, and importlib's part is done once for many modules.
        """
        if (entry := self.entry(name)) is None:
            return
        self.load_all(entry[3])
        package, _, last = name.rpartition(".")
        if package and package not in sys.modules:
            __import__(package)  # its source has changed
        module = type(sys)(name)
        path = self.home + entry[0]
        module.__spec__ = spec = spec_of(name, path, SourceFileLoader(name, path))
        module.__loader__, module.__file__ = spec.loader, path
        module.__package__ = package
        if spec.submodule_search_locations is not None:
            module.__package__ = name
            module.__path__ = spec.submodule_search_locations
        sys.modules[name] = module
        spec._initializing = True  # type: ignore[attr-defined]  # by which an import tells who is still half loaded
        try:
            exec(entry[4], module.__dict__)  # noqa: S102  as importlib does
        except BaseException:
            sys.modules.pop(name, None)
            raise
        finally:
            spec._initializing = False  # type: ignore[attr-defined]
        if package:
            setattr(sys.modules[package], last, module)

    def load_all(self, names: "Sequence[str]") -> None:
        """Import those that are not imported yet."""
        for name in names:
            if name not in sys.modules:
                self.load(name)

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """importlib's question of a finder. What the module imports at its top is loaded with it."""
        if name in self.extensions:
            return self.extension(name)
        if name not in self.groups or (entry := self.entry(name)) is None:
            return None
        self.load_all(entry[3])
        path = self.home + entry[0]
        return spec_of(name, path, Loader(name, path, entry[4]))

    def extension(self, name: str) -> ModuleSpec | None:
        """The same for a module of the standard library that is a shared object: the folders of sys.path are not listed."""
        path = self.extensions[name]
        try:
            posix.stat(path)
        except OSError:
            return None  # the interpreter was replaced
        spec = ModuleSpec(name, ExtensionFileLoader(name, path), origin=path)
        spec.has_location = True
        return spec


def spec_of(name: str, path: str, loader: SourceFileLoader) -> ModuleSpec:
    """The specification of a module, as Python's own finder would have made it."""
    spec = ModuleSpec(name, loader, origin=path, is_package=is_package(path))
    spec.has_location = True
    if is_package(path):
        spec.submodule_search_locations = [path.rpartition("/")[0]]
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


def is_package(path: str) -> bool:
    """Whether a module's file is that of a package."""
    return path.endswith("/__init__.py")


def start(fd: int, home: str, size: int, *index: "Any") -> None:
    """Import from the image from now on. `home`: the folder of the package's folder, with a final slash; `index`: see above."""
    sys.meta_path.insert(0, Image(fd, home, size, *index))
